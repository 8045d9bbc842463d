"""The notebook of examples/ runs from top to bottom; an interrupt spares its server; its kernel leaves no process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"

# What "Interrupt" does: a signal to the kernel's process group.
INTERRUPTED = """
import os, signal, time
try:
    os.killpg(os.getpgid(0), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    pass
"""


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotebookClient]:
    """The notebook with a running kernel, which is killed at the end."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    client = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=120, kernel_name="python3")
    with client.setup_kernel():
        yield client


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(notebook: NotebookClient, source: str) -> str:
    """The text that a new cell prints."""
    cell = nbformat.v4.new_code_cell(source)
    notebook.nb.cells.append(cell)
    notebook.execute_cell(cell, len(notebook.nb.cells) - 1)
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs_and_leaves_no_process(
    notebook: NotebookClient, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    cells: list[Any] = list(notebook.nb.cells)
    for index, cell in enumerate(cells):
        notebook.execute_cell(cell, index)
    outputs = {cell.id: cell.outputs for cell in cells if cell.cell_type == "code"}
    assert "largest difference from PyTorch" in outputs["steps"][0].text
    assert "(8, 1)" in outputs["async"][0].text
    assert outputs["figures"][0].text.startswith("21.0 steps, 0.0 live sessions")
    assert outputs["close"][0].data["text/plain"] == "0"

    # An interrupted cell leaves the server and its sessions alone.
    run(notebook, 'client = streamcell.local(module, "x:float32[3]")\nlive = client.session("Tracker")')
    pid = int(run(notebook, "print(client.server.pid)"))
    run(notebook, INTERRUPTED)
    assert run(notebook, "print(live.step(x[0]).shape, client.server.process.poll())").strip() == "(1,) None"
    os.kill(int(run(notebook, "print(os.getpid())")), signal.SIGKILL)
    assert eventually(lambda: gone(pid))
