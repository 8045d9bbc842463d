"""A client in another language: Node's gRPC library, which knows the server by reflection, against PyTorch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.npm import installed

SOURCE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def folder(program: Callable[[str], str]) -> Path:
    """The client with its packages."""
    return installed(SOURCE, program("npm"))


def test_node_streams_over_both_protocols_by_reflection_alone(
    folder: Path, served: Any, modules: dict[str, torch.nn.Module], program: Callable[[str], str]
) -> None:
    random = np.random.default_rng(3)
    sequences = [random.standard_normal((length, 3)).astype(np.float32) for length in (1, 7, 20, 13, 20, 2)]
    job = {
        "target": served.target,
        "model": "lstm",
        "input": served_input(served),
        "sequences": [sequence.tolist() for sequence in sequences],
    }
    done = subprocess.run(
        [program("node"), "client.js"],
        cwd=folder,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"streamcell.v1.StreamCell", "inference.GRPCInferenceService"} <= set(result["services"])
    for at, sequence in enumerate(sequences):
        with torch.no_grad():
            expected = modules["lstm"](torch.from_numpy(sequence)[None])[0][0].numpy()
        for protocol in ("native", "oip"):
            np.testing.assert_allclose(result[protocol][at], expected, atol=1e-5, err_msg=protocol)
    (error,) = result["errors"]
    assert "inference request for sequence 999 to model 'lstm' must specify the START flag" in error


def served_input(served: Any) -> str:
    """The name of the model's only input."""
    from streamcell.client import connect

    with connect(served.target) as client:
        (tensor,) = client.model("lstm").inputs
        return tensor.name
