"""Real proxies, each on a file of deploy/proxies/ with ports of its own."""

from __future__ import annotations

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


@contextmanager
def proxy(
    name: str, program: Callable[[str], str], folder: Path, *changes: tuple[str, str], files: Path = FILES
) -> Iterator[str]:
    """Start a proxy on its file in `files` with these changes, and yield its address. `folder` is for its own files."""
    port, (suffix,) = free_port(), [path.suffix for path in files.glob(f"{name}.*")]
    text = (files / f"{name}{suffix}").read_text()
    for old, new in (("8080", str(port)), *changes):
        assert old in text
        text = text.replace(old, new)
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _NGINX_KINDS)
    file = folder / f"{name}{suffix}"
    file.write_text(text.replace("http {", "http {" + places))
    with LocalProgram(_command(name, program, folder, file), port, folder / "log") as started:
        yield started.target
