"""The example client in TypeScript, made from the .proto: it compiles under `strict`, and its outputs are PyTorch's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.npm import installed

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto" / "streamcell" / "v1" / "streamcell.proto"


def test_the_example_compiles_and_streams_what_pytorch_computes(
    served: Any, modules: dict[str, torch.nn.Module], program: Callable[[str], str]
) -> None:
    node, folder = program("node"), installed(ROOT / "examples" / "typescript", program("npm"))

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([node, *command], cwd=folder, capture_output=True, text=True, timeout=120)

    compiled = run("node_modules/typescript/bin/tsc")
    assert compiled.returncode == 0, compiled.stdout
    done = run("build/client.js", served.target, "lstm", PROTO)
    assert done.returncode == 0, done.stderr
    x = np.sin(np.arange(1, 11)[:, None] + np.arange(3)).astype(np.float32)
    with torch.inference_mode():
        wanted = modules["lstm"](torch.from_numpy(x[None]))[0][0].numpy()
    printed = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    np.testing.assert_array_equal(printed[:, 0], np.arange(1, 11))
    np.testing.assert_allclose(printed[:, 1:], wanted, atol=1e-5)
    wrong = run("build/client.js", served.target, "none", PROTO)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("NOT_FOUND: ")
