"""Notices changed files, on a separate thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import structlog

_log = structlog.get_logger(__name__)

_LOOK_S = 1.0

_Print: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


class _Files:
    def __init__(self, paths: tuple[Path, ...], reload: Callable[[], object]) -> None:
        self.paths = paths
        self.reload = reload
        self.known = self.seen = self.print()

    def print(self) -> _Print:
        return tuple(_print(path) for path in self.paths)


class Watched:
    """Files, each with a function that reads it again. Files that belong together are read once none changes."""

    def __init__(self) -> None:
        self._files: list[_Files] = []
        self._looks: list[Callable[[], object]] = []
        self._stopping = threading.Event()

    def add(self, paths: Iterable[Path], reload: Callable[[], object]) -> None:
        """Call `reload` when one of `paths` has changed; if it raises OSError, the log says why. Before `start`."""
        self._files.append(_Files(tuple(paths), reload))

    def each_look(self, call: Callable[[], object]) -> None:
        """Call `call` at each look. Before `start`."""
        self._looks.append(call)

    def start(self) -> None:
        """Look once a second from now on, if there is anything to look at."""
        if self._files or self._looks:
            threading.Thread(target=self._watch, name="files", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def look(self) -> None:
        """Read files again that have changed, but not since the previous look."""
        for files in self._files:
            now = files.print()
            if now == files.known:
                files.seen = now
            elif now == files.seen:
                files.known = now
                self._reload(files)
            else:  # perhaps only one of a pair is there yet
                files.seen = now
        for call in self._looks:
            call()

    def reload(self) -> None:
        """Have all files read again."""
        for files in self._files:
            files.known = files.seen = files.print()
            self._reload(files)

    def _reload(self, files: _Files) -> None:
        try:
            files.reload()
        except OSError as error:
            _log.error("not reloaded, what was read before stays", error=str(error))
        else:
            _log.info("reloaded", files=[str(path) for path in files.paths])

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                self.look()
            except Exception as error:  # a bug must not end it
                _log.error("looking for changed files failed", exc_info=error)


def _print(path: Path) -> tuple[int, int, int, int] | None:
    """What changes with a file's content; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
