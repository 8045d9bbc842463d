"""The tests' servers that are forks: children of the test's process, with their own variables, and no thread lost."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from streamcell.client import SessionLimit, connect
from tests.support.forked import ForkedServer
from tests.support.forking import Forked
from tests.support.frontends import processes
from tests.support.waiting import waited

ROOT = Path(__file__).parents[2]

_GET_CHILD_SUBREAPER = 37  # of prctl(2)


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ForkedServer]:
    with ForkedServer(models_dir, environment={"STREAMCELL_MAX_SESSIONS": "1"}) as server:
        yield server


def test_it_is_a_child_with_its_own_flags_and_variables(server: ForkedServer, models_dir: Path) -> None:
    assert isinstance(server.process, Forked)
    process = psutil.Process(server.pid)
    assert process.ppid() == os.getpid()
    shown = " ".join(process.cmdline()).rstrip()
    assert shown.startswith(f"{sys.executable} -m streamcell.cli serve --models {models_dir} ")
    with ForkedServer(models_dir, "--max-sessions", "2") as other:
        for each, most in ((server, 1), (other, 2)):
            with connect(each.target) as client, ExitStack() as stack:
                for _ in range(most):
                    stack.enter_context(client.session("lstm")).step(np.zeros(3, np.float32))
                with pytest.raises(SessionLimit):
                    client.session("lstm").step(np.zeros(3, np.float32))
    assert other.process.returncode == 0
    assert [line["event"] for line in other.log][-1] == "stopped"


def test_its_end_is_seen(models_dir: Path, tmp_path: Path) -> None:
    killed = ForkedServer(models_dir).wait_until_up()
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    refused = ForkedServer(tmp_path)
    assert refused.process.wait(60) == 1
    refused._reader.join(60)
    assert "no model" in "".join(refused.said)


def test_a_variable_that_the_tests_own_process_sets_is_there_from_the_first_import_on(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    with ForkedServer(models_dir) as server:
        assert isinstance(server.process, Forked)
        assert psutil.Process(server.pid).environ()["KMP_BLOCKTIME"] == "7"


def test_what_else_is_asked_for_begins_an_interpreter(models_dir: Path) -> None:
    for how in ({"environment": {"OMP_NUM_THREADS": "1"}}, {"own_group": True}):
        with ForkedServer(models_dir, **how) as server:  # type: ignore[arg-type]
            assert not isinstance(server.process, Forked)


def test_its_processes_are_forks_too_and_start_again(models_dir: Path) -> None:
    def kinds() -> Counter[str]:
        shown = [" ".join(each.cmdline()).split() for each in psutil.Process(server.pid).children()]
        return Counter(
            words[2].rpartition(".")[2] for words in shown if words[2].startswith("streamcell.service")
        )

    def metric(name: str) -> float:
        return server.metric(name, kind="engine")

    every = {"engine": 1, "frontend": 2}
    with ForkedServer(models_dir, "--frontends", "2") as server:
        assert kinds() == every
        (engine,) = processes(server, "engine")
        assert os.getpgid(engine.pid) == engine.pid
        with connect(server.target) as client, client.session("lstm") as session:
            session.step(np.zeros(3, np.float32))
        engine.kill()
        assert waited(lambda: metric("streamcell_process_restarts_total") >= 1 and kinds() == every)


def test_what_forks_has_only_the_threads_of_numpy_which_numpy_starts_again() -> None:
    # The template's, as its forks have them before they use grpc or ONNX Runtime.
    count = "import os, numpy; print(len(os.listdir('/proc/self/task')))"
    of_numpy = int(subprocess.check_output([sys.executable, "-c", count]))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        + """
import os, subprocess
from tests.support.forking import Template, Forked
Forked.template = Template.start()
Forked([sys.executable, "-m", "streamcell.cli", "--version"], stdout=subprocess.DEVNULL).wait()
(template,) = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(len(os.listdir(f"/proc/{template}/task")))
"""
    )
    assert int(subprocess.check_output([sys.executable, "-c", code])) <= of_numpy


def test_no_other_orphan_becomes_a_child(server: ForkedServer) -> None:
    adopts = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0) == 0
    assert adopts.value == 0
