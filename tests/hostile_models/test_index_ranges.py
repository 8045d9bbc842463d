"""Which values an index may have is found in the graph, where it can be, and checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.card import Signature, State, Tensor
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.graph.index_ranges import find_ranges, with_index_ranges
from streamcell.service.graph.pooled import pool_states
from streamcell.service.load_errors import SidecarError
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.value_check import ValueCheck
from tests.support.onnx_files import parsed, save

TABLE = np.arange(30, dtype=np.float32).reshape(10, 3)
SMALL = TABLE[:4]
SIDECAR = 'layout = "batch"\noutputs = ["y"]\n'


def ranges(model: Any, dtype: str = "int64", shape: tuple[int, ...] = (), layout: Any = "batch") -> Any:
    signature = Signature(
        inputs=(Tensor(name="x", dtype=dtype, step_shape=shape),),
        outputs=(Tensor(name="y", dtype="float32"),),
        layout=layout,
    )
    return find_ranges(model.graph, signature, signature.inputs[0])


ONE = [
    ("y = Gather(table, x)", (0, 9)),
    ("y = Gather <axis = 1> (table, x)", (0, 2)),
    ("a = Identity(x) b = Cast <to = 6> (a) y = Gather(table, b)", (0, 9)),
    ("a = Unsqueeze(x, one) b = Reshape(a, flat) c = Squeeze(b) y = Gather(table, c)", (0, 9)),
    ("t = Transpose(table) y = Gather(t, x)", (0, 2)),
    ("t = Identity(table) y = Gather(t, x)", (0, 9)),
    ("a = Add(x, one) y = Gather(table, a)", (-1, 8)),
    ("a = Sub(x, one) y = Gather(table, a)", (1, 10)),
    ("y = OneHot(x, ten, pair)", (0, 9)),
    ("a = Unsqueeze(x, one) y = GatherND(table, a)", (0, 9)),
    ("a = Unsqueeze(x, one) y = GatherElements(table, a)", (0, 9)),
    ("a = Unsqueeze(x, one) y = ScatterND(table, a, rows)", (0, 9)),
    ("a = Gather(table, x) b = Gather(small, x) y = Concat <axis = 1> (a, b)", (0, 3)),
    ("a = Unsqueeze(x, one) b = Concat <axis = 1> (a, a) y = Gather(table, b)", (0, 9)),
]


@pytest.mark.parametrize(("nodes", "expected"), ONE, ids=[nodes for nodes, _ in ONE])
def test_a_range_is_found_through_what_moves_or_shifts_an_index(
    nodes: str, expected: tuple[int, int]
) -> None:
    model = parsed(
        f"(int64[n] x) => (float[n,3] y) {{ {nodes} }}",
        table=TABLE, small=SMALL, one=np.array([1]), flat=np.array([-1]), ten=np.array(10),
        pair=np.zeros(2, np.float32), rows=np.zeros((1, 3), np.float32),
    )  # fmt: skip
    assert ranges(model) == (expected,)


OPEN = [
    "a = Mul(x, one) y = Gather(table, a)",
    "a = Less(x, one) b = Where(a, one, x) y = Gather(table, b)",
    "a = Max(x, one) y = Gather(table, a)",
    "a = Clip(x, low, low) y = Gather(table, a)",
    "a = Mod(x, one) y = Gather(table, a)",
    "a = Cast <to = 1> (x) y = Identity(a)",
    "a = Concat <axis = 0> (x, one) b = Slice(a, one, one) y = Gather(table, b)",
    "a = Less(x, one) b = ReduceMax <keepdims = 0> (x) c = Greater(b, low) y = If (c) "
    "<then_branch = t () => (float[n,3] p) { p = Gather(table, x) }, "
    "else_branch = e () => (float[n,3] q) { q = Gather(table, one) }>",
]


@pytest.mark.parametrize("nodes", OPEN)
def test_what_cannot_be_known_is_left_to_the_run(nodes: str) -> None:
    model = parsed(
        f"(int64[n] x) => (float[n,3] y) {{ {nodes} }}", table=TABLE, one=np.array([1]), low=np.array(0)
    )
    assert ranges(model) == ()


SEVERAL = [
    ("a = Gather <axis = 1> (x, c0) y = Gather(table, a)", ((0, 9), None, None)),
    ("a = Slice(x, c1, c2, c1) y = Gather(table, a)", (None, (0, 9), None)),
    ("a, b, c = Split <axis = 1> (x) d = Gather(table, b) e = Gather(small, c) y = Add(d, e)",
     (None, (0, 9), (0, 3))),
    ("a = Add(x, steps) y = Gather(table, a)", ((0, 9), (-1, 8), (-2, 7))),
    ("y = Gather(table, x)", ((0, 9),)),
    ("a = Reshape(x, flat) b = Slice(a, c1, c2) y = Gather(table, b)", (None, (0, 9), None)),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "expected"), SEVERAL, ids=[nodes for nodes, _ in SEVERAL])
def test_elements_of_a_step_have_ranges_of_their_own(nodes: str, expected: Any) -> None:
    model = parsed(
        f"(int64[n, 3] x) => (float[n,3] y) {{ {nodes} }}",
        table=TABLE, small=SMALL, c0=np.array([0]), c1=np.array([1]), c2=np.array([2]),
        steps=np.array([0, 1, 2]), flat=np.array([-1]),
    )  # fmt: skip
    limits = (-(2**63), 2**63 - 1)
    assert ranges(model, shape=(3,)) == tuple(pair or limits for pair in expected)


def test_a_range_is_found_in_the_body_of_a_scan() -> None:
    model = parsed(
        "(int64[n, t] x, float[n, 3] h) => (float[n, t, 3] y, float[n, 3] h_next) {"
        " h_next, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],"
        " body = b (float[n, 3] old, int64[n] token) => (float[n, 3] new, float[n, 3] out)"
        " { e = Gather(table, token) new = Add(old, e) out = Identity(new) }> (h, x) }",
        table=TABLE,
    )
    assert ranges(model, layout="batch_time") == ((0, 9),)


def test_the_card_and_the_graph_both_count_and_a_sidecar_overrules_them(tmp_path: Path) -> None:
    model = parsed("(int64[n] x) => (float[n,3] y) { y = Gather(table, x) }", table=TABLE)
    said = Tensor(name="x", dtype="int64", index_ranges=((2, 50),))
    signature = Signature(inputs=(said,), outputs=(Tensor(name="y", dtype="float32"),), layout="batch")
    assert with_index_ranges(model.graph, signature).inputs[0].index_ranges == ((2, 9),)
    for given, expected in (("[-1, 4]", ((-1, 4),)), ('"any"', ()), (None, ((0, 9),))):
        more = f", index_range = {given}" if given else ""
        path = save(model, tmp_path / "t.onnx", f'{SIDECAR}inputs = [{{ name = "x"{more} }}]')
        assert open_model(path, "t").signature.inputs[0].index_ranges == expected
    save(model, tmp_path / "t.onnx", f'{SIDECAR}inputs = [{{ name = "x", index_range = [5, 4] }}]')
    with pytest.raises(SidecarError, match=r"t\.toml.*index range 5 to 4 is none of int64"):
        open_model(tmp_path / "t.onnx", "t")


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8", "uint32", "uint64"])
def test_rows_with_an_index_outside_are_found_in_every_dtype(dtype: str) -> None:
    model_ranges = {"one": ((0, 9),), "each": ((0, 9), (3, 9), (0, 120))}
    limits = np.iinfo(dtype)
    for index_ranges in model_ranges.values():
        tensor = Tensor(name="x", dtype=dtype, step_shape=(3,), index_ranges=index_ranges)  # type: ignore[arg-type]
        outputs = (Tensor(name="y", dtype="float32"),)
        check = ValueCheck(
            Signature(inputs=(tensor,), outputs=outputs, layout="batch"), allow_non_finite=False
        )
        array = np.full((5, 3), 3, dtype)
        array[1, 0], array[2, 1], array[4, 0] = limits.max, 10, limits.min or 9
        expected = [1, 2] if limits.min == 0 else [1, 2, 4]
        assert check.bad_rows([array], 5) == expected
        assert check.bad_rows([array], 1) == []
        array[0, 1] = 2
        assert check.bad_rows([array], 1) == ([0] if len(index_ranges) > 1 else [])


def test_padding_rests_on_an_index_that_the_table_has() -> None:
    """Ids that begin at 5: the zeros that nobody has sent are no row of the table, and must refuse nobody."""
    model = parsed(
        "(int64[n, t] x, int64[n] n, float[n, 3] h) => (float[n, t, 3] y, float[n, 3] h_next)"
        " { a = Sub(x, five) y = Gather(table, a) h_next = Identity(h) }",
        table=TABLE, five=np.array(5),
    )  # fmt: skip
    signature = with_index_ranges(
        model.graph,
        Signature(
            inputs=(Tensor(name="x", dtype="int64"),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="h", output="h_next", dtype="float32", shape=(3,)),),
            lengths=None,
        ),
    )
    assert signature.inputs[0].index_ranges == ((5, 14),)
    del model.graph.input[1]
    check = ValueCheck(signature, allow_non_finite=False)
    for device in (Device(), Device(apart=True)):
        engine = Engine(
            pool_states(model, signature), signature,
            EngineOptions(device=device, max_sessions=4, max_batch=4, max_chunk=4, fixed_shapes=True),
        )  # fmt: skip
        engine.warm_up()
        for _ in range(2):
            staged = engine.stage(3, 4)
            engine.pad(staged, 0)
            assert staged.values[0].min() == 5
            assert check.bad_rows(staged.values[:1], 3) == []
            staged.values[0].fill(99)
            engine.clear_inputs()
