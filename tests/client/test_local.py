"""`streamcell.local`: a server and its client in one line, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

import streamcell
from streamcell.client.local_server import ServerProcessError
from streamcell.export import SpecError

X = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)


class Leaky(nn.Module):
    """A leaky sum of what came: a module of a user's own."""

    def forward(
        self, x: torch.Tensor, total: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros(x.shape[0], 3) if total is None else total
        outputs = []
        for step in x.unbind(1):
            total = 0.5 * total + step
            outputs.append(total)
        return torch.stack(outputs, 1), total


@pytest.fixture(scope="module")
def folder(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copy(models_dir / "lstm.onnx", folder)
    return folder


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_folder_is_served_until_the_block_is_left(folder: Path, modules: dict[str, nn.Module]) -> None:
    with streamcell.local(folder, max_sessions=1) as client:
        with client.session("lstm") as session, torch.inference_mode():
            wanted = modules["lstm"](torch.from_numpy(X[None]))[0][0].numpy()
            np.testing.assert_allclose(session.run(X), wanted, atol=1e-5)
            with pytest.raises(streamcell.client.SessionLimit):
                client.session("lstm")
        pid = client.server.pid
        assert not gone(pid)
        # Ctrl-C goes to the whole group of a terminal or a notebook, and is not for the server.
        assert os.getpgid(pid) != os.getpgid(0)
    assert gone(pid)
    assert client.server.process.returncode == 0


def test_a_module_of_ones_own_is_exported_proved_and_served_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nobody else's
    with streamcell.local(Leaky(), "x:float32[3]") as client, client.session("Leaky") as session:
        total, wanted = np.zeros(3, np.float32), []
        for row in X:
            total = 0.5 * total + row
            wanted.append(total)
        np.testing.assert_allclose(session.run(X), wanted, atol=1e-5)
        assert client.model("Leaky").card["proof"]["errors"]
        assert list(tmp_path.glob("streamcell-????????"))
    assert not list(tmp_path.glob("streamcell-????????"))


def test_a_model_of_the_project_needs_no_example(modules: dict[str, nn.Module]) -> None:
    with streamcell.local(modules["gru"], name="mine", connect={"multiplex": True}) as client:
        assert [model.name for model in client.models()] == ["mine"]


def test_the_event_loop_runs_while_the_server_starts(folder: Path) -> None:
    async def main() -> int:
        passes = 0

        async def count() -> None:
            nonlocal passes
            while True:
                passes += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        async with streamcell.local_async(folder) as client, client.session("lstm") as session:
            assert passes > 100
            y = await session.run(X)
            assert y.shape == (6, 2)
            pid = client.server.pid
        assert gone(pid)
        awaited = await streamcell.local_async(folder)
        assert await awaited.ready()
        await awaited.close()
        counting.cancel()
        return awaited.server.pid

    assert gone(asyncio.run(main()))


def test_a_start_that_is_cancelled_leaves_no_server(folder: Path, eventually: Any) -> None:
    ours = psutil.Process()

    async def main() -> None:
        starting = asyncio.ensure_future(streamcell.local_async(folder))
        while not children(ours):
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    def children(process: psutil.Process) -> list[psutil.Process]:
        return [child for child in process.children() if is_server(child)]

    def is_server(child: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it may end meanwhile
            return "streamcell.cli.child" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
        return False

    asyncio.run(main())
    assert eventually(lambda: not children(ours))


CODE = """
import os, sys, time, threading
import streamcell
{before}
client = streamcell.local({models!r})
client.session("lstm")
print(client.server.pid, flush=True)
{after}
"""


def run(models: Path, after: str, before: str = "") -> subprocess.Popen[str]:
    code = CODE.format(models=str(models), before=before, after=after)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("after", "kill"),
    [
        ("sys.stdin.read()", signal.SIGKILL),
        ("", None),
        ("del client; import gc; gc.collect(); sys.stdin.read()", None),
        # A fork that outlives its parent holds copies of everything that the parent had open.
        ("if os.fork() == 0: time.sleep(120); os._exit(0)\nsys.stdin.read()", signal.SIGKILL),
    ],
    ids=["killed", "ended", "forgotten", "forked and killed"],
)
def test_no_server_outlives_its_process_or_its_client(
    folder: Path, eventually: Callable[[Callable[[], bool]], bool], after: str, kill: int | None
) -> None:
    process = run(folder, after)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if kill is not None:
        process.send_signal(kill)
    assert eventually(lambda: gone(pid))
    process.kill()
    process.communicate()


def test_a_fork_that_ends_does_not_take_the_server_with_it(folder: Path) -> None:
    after = (
        "child = os.fork()\nif child == 0: sys.exit(0)\nos.waitpid(child, 0)\n"
        "print(client.server.process.poll(), client.ready(), flush=True)\nclient.close()"
    )
    process = run(folder, after)
    out, _ = process.communicate(timeout=60)
    assert out.split()[1:] == ["None", "True"]


def test_it_starts_in_any_thread_and_the_environments_settings_do_not_reach_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMCELL_MAX_SESSIONS", "none")
    monkeypatch.setenv("STREAMCELL_TLS_CERT", "/nowhere.pem")
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(streamcell.local(folder)))
    thread.start()
    thread.join()
    (client,) = made
    with client:
        assert client.ready()


def test_what_cannot_be_served_is_told_in_the_servers_words(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*: give one with models"):
        streamcell.local(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="give the folder that it is in"):
        streamcell.local(folder / "lstm.onnx")
    with pytest.raises(ServerProcessError, match=f"no model in {tmp_path}"):
        streamcell.local(tmp_path)
    with pytest.raises(ServerProcessError, match="No such option: --max-sesions"):
        streamcell.local(folder, max_sesions=1)
    with pytest.raises(SpecError, match=r'say what goes into Leaky.*"x:float32'):
        streamcell.local(Leaky())
    with pytest.raises(TypeError, match="example_x, name and export are for a module"):
        streamcell.local(folder, X)
    with pytest.raises(TypeError, match="expected a folder of models or a torch module, got int"):
        streamcell.local(5)  # type: ignore[arg-type]
