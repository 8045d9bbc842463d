"""How the suite runs in several processes: who waits for whom, and what is made once for all."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.parallel import made_once, turn


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Of one of a run's processes."""
    return SimpleNamespace(workerinput={}, option=SimpleNamespace(basetemp=str(tmp_path / "gw0")))


def is_held(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_test_that_runs_alone_waits_for_those_that_run_and_holds_up_those_that_come(
    config: Any, tmp_path: Path, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    done: list[str] = []

    def run(name: str, *, alone: bool) -> None:
        with turn(config, alone=alone):
            done.append(name)

    with turn(config, alone=False):
        run("beside", alone=False)
        alone = threading.Thread(target=run, args=("alone",), kwargs={"alone": True})
        alone.start()
        assert eventually(lambda: is_held(tmp_path / "gate"))
        later = threading.Thread(target=run, args=("later",), kwargs={"alone": False})
        later.start()
        done.append("first")
    alone.join()
    later.join()
    assert done == ["beside", "first", "alone", "later"]


def test_what_is_made_once_is_made_by_the_first_who_wants_it(config: Any, tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)

    threads = [
        threading.Thread(target=made_once, args=(None, config, "models", make), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "models"]


def test_a_run_of_one_process_waits_for_nobody(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone: Any = SimpleNamespace(option=pytestconfig.option)
    with turn(alone, alone=True), turn(alone, alone=True):
        made: list[Path] = []
        assert [made_once(tmp_path_factory, alone, "mine", made.append) for _ in range(2)] == made
