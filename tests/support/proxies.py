"""Real proxies, each on a file of deploy/proxies/ with ports of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streamcell.client import local_proxies
from streamcell.client.local_programs import LocalProgram, find, free_port

FILES = Path(__file__).parents[2] / "deploy" / "proxies"
_NGINX_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _command(name: str, program: Callable[[str], str], folder: Path, file: Path) -> list[str | Path]:
    if name == "nginx":
        own = f"daemon off; pid {folder}/pid; error_log {folder}/error.log;"
        return [program("nginx"), "-p", folder, "-c", file, "-e", f"{folder}/start.log", "-g", own]
    return local_proxies.command(Path(program("haproxy")) if name == "haproxy" else find(name), file)


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each first one replaced by its second one. Digits are no part of a longer number.

    What is put in is left as it is: a port that was chosen may contain another one's digits.
    """
    news = dict(changes)
    found = set()

    def new(match: re.Match[str]) -> str:
        found.add(match[0])
        return news[match[0]]

    text = re.sub("|".join(rf"(?<!\d){re.escape(old)}(?!\d)" for old in news), new, text)
    assert found == {*news}, f"not in the file: {sorted({*news} - found)}"
    return text


@contextmanager
def proxy(
    name: str, program: Callable[[str], str], folder: Path, *changes: tuple[str, str], files: Path = FILES
) -> Iterator[str]:
    """Start a proxy on its file in `files` with these changes, and yield its address. `folder` is for its own files."""
    port, (suffix,) = free_port(), [path.suffix for path in files.glob(f"{name}.*")]
    text = replaced((files / f"{name}{suffix}").read_text(), ("8080", str(port)), *changes)
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _NGINX_KINDS)
    file = folder / f"{name}{suffix}"
    file.write_text(text.replace("http {", "http {" + places))
    with LocalProgram(_command(name, program, folder, file), port, folder / "log") as started:
        yield started.target
