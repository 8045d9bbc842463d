"""The suite in several processes at once, by pytest-xdist: who runs beside whom, and what is made only once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest


def shared_folder(config: pytest.Config) -> Path | None:
    """The folder that all processes of one run share; None for a run of one process."""
    return Path(config.option.basetemp).parent if hasattr(config, "workerinput") else None


@contextmanager
def turn(config: pytest.Config, *, alone: bool) -> Iterator[None]:
    """Within, the run's other processes run no test if `alone`, and else only tests that are not alone.

    Whoever waits to be alone holds the gate: no other test begins before it.
    """
    folder = shared_folder(config)
    if folder is None:
        yield
        return
    with _locked(folder / "gate", fcntl.LOCK_EX) as gate:
        room = (folder / "room").open("ab")
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        gate.close()
    with room:
        yield


def made_once(
    factory: pytest.TempPathFactory, config: pytest.Config, name: str, make: Callable[[Path], None]
) -> Path:
    """A folder that `make` has filled, once for all processes of the run. Tests leave it as it is."""
    shared = shared_folder(config)
    if shared is None:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    folder, done = shared / name, shared / f"{name} is made"
    with _locked(shared / f"{name} lock", fcntl.LOCK_EX):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@contextmanager
def _locked(path: Path, how: int) -> Iterator[IO[bytes]]:
    with path.open("ab") as file:
        fcntl.flock(file, how)
        yield file
