"""The example scripts against a real server: both do the same work, and it is what PyTorch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SEQUENCES, STEPS = 4, 10


def run(name: str, *arguments: str) -> dict[tuple[int, int], list[float]]:
    """What the script printed: the output by sequence and step index."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(int(line[0]), int(line[1])): [float(value) for value in line[2:]] for line in lines}


def test_both_clients_do_the_same_work(served: Any, modules: dict[str, torch.nn.Module]) -> None:
    native = run("native_client.py", served.target, "lstm")
    assert list(native) == [(sequence, step) for step in range(1, STEPS + 1) for sequence in range(SEQUENCES)]
    x = np.random.default_rng(1).standard_normal((SEQUENCES, STEPS, 3)).astype(np.float32)
    with torch.no_grad():
        y = modules["lstm"](torch.from_numpy(x))[0].numpy()
    for (sequence, step), output in native.items():
        assert output == pytest.approx(y[sequence, step - 1], abs=1e-5)
    triton = run("triton_client.py", served.target, "lstm")
    assert list(triton) == list(native)
    for key, output in triton.items():
        assert output == pytest.approx(
            native[key], abs=2e-6
        )  # the last digit printed may be rounded either way


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f"examples/{script.name}" in readme, script.name
