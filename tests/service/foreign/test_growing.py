"""Caches that grow are refused with the rolling cache to export instead; caches that roll are served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamcell.service.load_errors import GrowingStateError
from streamcell.service.repository.model_file import open_model
from tests.support import onnx_files

NEW = "k = Unsqueeze(x, one)"
GROWS = f"{{ {NEW}  present_k = Concat<axis = 1>(past_k, k)  y = ReduceSum<keepdims = 0>(present_k, one) }}"
SIDE = (
    'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
    '[[states]]\ninput = "past_k"\noutput = "present_k"\nshape = [8, 4]\nbatch_axis = 0\n'
)
OPEN = "(float[b,4] x, float[b,past,4] past_k) => (float[b,4] y, float[b,{after},4] present_k)"
FIXED = "(float[b,4] x, float[b,8,4] past_k) => (float[b,4] y, float[b,{after},4] present_k)"
TURNED = (
    "(float[b,4] x, float[b,4,past] past_k) => (float[b,4] y, float[b,4,after] present_k) "
    f"{{ {NEW}  turned = Transpose<perm = [0, 2, 1]>(past_k)  all = Concat<axis = -2>(turned, k) "
    "present_k = Transpose<perm = [0, 2, 1]>(all)  y = Identity(x) }"
)
GROWING: dict[str, tuple[str, str | None, int]] = {
    "by its sum": (OPEN.format(after='"past + 1"') + GROWS, None, 1),
    "by its numbers": (f"{FIXED.format(after=9)} {GROWS}", None, 1),
    "by its nodes": (f"{FIXED.format(after='n')} {GROWS}", None, 1),
    "by its nodes, with a sidecar": (f"{OPEN.format(after='total')} {GROWS}", SIDE, 1),
    "by its numbers, with a sidecar": (f"{FIXED.format(after=9)} {GROWS}", SIDE, 1),
    "behind transposes": (TURNED, None, 2),
    "behind transposes, with a sidecar": (TURNED, SIDE.replace("[8, 4]", "[4, 8]"), 2),
}


def save(folder: Path, graph: str, sidecar: str | None) -> Path:
    model = onnx_files.parsed(graph, 18, one=np.array([1]))
    return onnx_files.save(model, folder / "m.onnx", sidecar)


def test_a_state_that_only_seems_to_grow_may_be_said_to_stay(tmp_path: Path) -> None:
    graph = OPEN.format(after="total") + "{ present_k = Tanh(past_k)  y = Identity(x) }"
    with pytest.raises(
        GrowingStateError, match=r"'past_k' seems to grow .*set shape and batch_axis in a sidecar"
    ):
        open_model(save(tmp_path, graph, None), "m")
    assert open_model(save(tmp_path, graph, SIDE), "m").signature.states[0].shape == (8, 4)


@pytest.mark.parametrize("name", GROWING)
def test_a_growing_cache_is_refused_with_the_rolling_one_to_export(tmp_path: Path, name: str) -> None:
    graph, sidecar, axis = GROWING[name]
    with pytest.raises(GrowingStateError) as error:
        open_model(save(tmp_path, graph, sidecar), "m")
    text = str(error.value)
    assert "state 'past_k' grows with every step" in text
    assert f"along axis {axis}" in text
    assert f"dim={axis})[{', '.join([*[':'] * axis, '-N:'])}]" in text
    assert ("[b, N, 4]" if axis == 1 else "[b, 4, N]") in text


ROLLS = (
    f"{{ {NEW}  all = Concat<axis = 1>(past_k, k)  present_k = Slice(all, one, nine, one) "
    "y = ReduceSum<keepdims = 0>(present_k, one) }"
)


@pytest.mark.parametrize("sidecar", [None, SIDE])
def test_a_rolling_cache_is_not(tmp_path: Path, sidecar: str | None) -> None:
    graph = f"{FIXED.format(after=8)} <int64[1] nine = {{9}}> {ROLLS}"
    signature = open_model(save(tmp_path, graph, sidecar), "m").signature
    assert signature.states[0].shape == (8, 4)


def test_a_cycle_of_nodes_is_not_followed_for_ever(tmp_path: Path) -> None:
    graph = (
        f"{FIXED.format(after=8)} {{ y = Identity(x)  present_k = Cast<to = 1>(q)  q = Identity(present_k) }}"
    )
    assert open_model(save(tmp_path, graph, SIDE), "m").signature.states
