"""The tutorial does what it says: its files and its commands, in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(?:(sh)|python title="([\w.]+)")\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    page = PAGE.read_text()
    port, metrics_port = free_port(), free_port()
    script = ["trap 'kill $(jobs -p); wait' EXIT"]
    for command, file, text in BLOCK.findall(page):
        text = text.replace("localhost:8500", f"localhost:{port}").replace(
            "localhost:9090", f"localhost:{metrics_port}"
        )
        if file:
            (tmp_path / file).write_text(text)
        else:
            assert command
            script.append(text.replace(" serve ", f" serve --port {port} --metrics-port {metrics_port} "))
    assert len(script) >= 5
    # Threads of PyTorch that wait for each other on cores that others use would train for minutes.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        said, complaints = shell.communicate(timeout=170)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, said + complaints
    promised = re.search(r"It prints `(after .*?)`", page)
    assert promised
    assert promised[1] in said
    (figure,) = re.findall(r"^```\n(streamcell_steps_total.*)\n```$", page, re.MULTILINE)
    assert figure in said
