"""Writes the blocking twins of asyncio modules: `python client/generate.py`; `--check` fails if one is out of date.

Code that both clients share is written once, in `client/aio/`. A twin has the same code without `async` and `await`.
A line `# blocking: code` in a module of `client/aio/` becomes code in the twin only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parent
MODULES = ("calls.py", "pool.py", "session.py")
CODE = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"# blocking: ", ""),
)
TEXT = (
    ("an asyncio gRPC stream", "a blocking gRPC stream"),
    ("asyncio client", "blocking client"),
    ("in an `async with`", "in a `with` statement"),
    (
        "One task at a time, except for `cancel`. A task that is cancelled while it awaits a reply ends the {}: "
        "whether\n    its steps were applied is not known.",
        "One thread at a time, except for `cancel`. Leaving the `with` block waits for what was sent and closes; "
        "leaving\n    it with an exception cancels.",
    ),
    (
        "Send one timestep or a chunk without awaiting its reply; waits if the server is not reading.",
        "Send one timestep `[*step_shape]` or a chunk `[T, *step_shape]` without waiting; `receive` its reply.",
    ),
)


def twin(name: str) -> str:
    """The text of `client/blocking/NAME`, made from `client/aio/NAME`."""
    text = (CLIENT / "aio" / name).read_text()
    for asyncio_text, blocking_text in TEXT:
        pattern = re.escape(asyncio_text).replace(r"\{\}", r"\w+")
        text = re.sub(pattern, lambda _, new=blocking_text: new, text)  # type: ignore[misc]
    for pattern, replacement in CODE:
        text = re.sub(pattern, replacement, text)
    text = f"# Made from client/aio/{name} by client/generate.py: change that file.\n{text}"
    for arguments in (("check", "--quiet", "--select", "I", "--fix"), ("format", "--quiet")):
        command = (
            sys.executable,
            "-m",
            "ruff",
            *arguments,
            "--stdin-filename",
            CLIENT / "blocking" / name,
            "-",
        )
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> int:
    """Write the twins; with --check, name those that are out of date."""
    check = "--check" in sys.argv[1:]
    stale = [name for name in MODULES if _text(CLIENT / "blocking" / name) != twin(name)]
    if check and stale:
        sys.stderr.write(
            f"out of date in client/blocking: {', '.join(stale)}; run python client/generate.py\n"
        )
        return 1
    for name in stale:
        (CLIENT / "blocking" / name).write_text(twin(name))
    return 0


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
