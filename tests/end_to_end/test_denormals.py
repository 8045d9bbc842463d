"""Decaying states end at zero: numbers too small for full precision, which are slow, never stay in a session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamcell.client import connect
from tests.support.onnx_files import parsed, save

DECAY = """(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h_next) {
    kept = Mul(h, half)
    h_next = Add(kept, x)
    y = Identity(h_next)
}"""
SIDE = """layout = "batch"
[[inputs]]
name = "x"
dtype = "float32"
step_shape = [4]
[[outputs]]
name = "y"
dtype = "float32"
step_shape = [4]
[[states]]
input = "h"
output = "h_next"
dtype = "float32"
shape = [4]
"""
SMALLEST = float(np.float32(2.0**-126))


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("decay")
    save(parsed(DECAY, half=np.array(0.5, np.float32)), folder / "decay.onnx", SIDE)
    return start_server(folder)


@pytest.mark.conformance
@pytest.mark.parametrize("message", [1, 40])
def test_a_state_that_decays_becomes_zero(server: Any, message: int) -> None:
    """One timestep a message runs on the serving thread, many on the engine thread."""
    with connect(server.target) as client, client.session("decay") as session:
        x = np.zeros((160, 4), np.float32)
        x[0] = 1
        y = np.concatenate(
            [np.atleast_2d(session.run(x[at : at + message])) for at in range(0, 160, message)]
        )
    values = np.abs(y[:, 0])
    np.testing.assert_array_equal(values[:126], 2.0 ** -np.arange(126.0))
    assert not np.count_nonzero((values > 0) & (values < SMALLEST))
    assert values[-1] == 0
