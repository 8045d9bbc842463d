"""A model whose answers depend on its batch is restricted or refused when it is loaded; healthy ones are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from structlog.testing import capture_logs

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

SIDE = 'inputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "s"\noutput = "s_out"\n'
STEP = f'layout = "batch"\n{SIDE}{STATE}'


def step_model(body: str, *, outputs: str = "", constants: str = "") -> onnx.ModelProto:
    return parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[b, 3] x, float[b, 3] s) => (float[b, 3] y, float[b, 3] s_out{outputs}) {constants} {{ {body} }}""")


MEAN = "m = ReduceMean<axes = [0], keepdims = 1>(x)  d = Sub(x, m)  s_out = Add(d, s)  y = Identity(s_out)"
RESHAPE = (
    "a = Add(x, s)  f = Reshape(a, flat)  g = CumSum(f, axis)  like = Shape(a)  y = Reshape(g, like)  "
    "s_out = Identity(a)"
)
FIXED_ROWS = "a = Add(x, s)  y = Reshape(a, one)  s_out = Identity(a)"
QUANTISED = (
    "a = Add(x, s)  q, scale, zero = DynamicQuantizeLinear(a)  y = DequantizeLinear(q, scale, zero)  "
    "s_out = Tanh(a)"
)
PLAIN = "s_out = Add(x, s)  y = Identity(s_out)"


def lstm_model(direction: str, *, cell: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    count = 2 if direction == "bidirectional" else 1
    value = helper.make_tensor_value_info
    names = ["h", "c"] if cell else ["h"]
    nodes = [
        helper.make_node(
            "LSTM",
            ["x", "W", "R", "", "", *names],
            ["all", *(f"{n}_out" for n in names)],
            name="rnn",
            hidden_size=4,
            direction=direction,
        ),
        helper.make_node("Transpose", ["all"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "shape"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal((count, 16, size)).astype(np.float32), name)
        for name, size in (("W", 3), ("R", 4))
    ]
    weights.append(numpy_helper.from_array(np.array([0, 0, 4 * count], np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            value("x", TensorProto.FLOAT, ["t", "b", 3]),
            *(value(n, TensorProto.FLOAT, [count, "b", 4]) for n in names),
        ],
        [
            value("y", TensorProto.FLOAT, ["t", "b", 4 * count]),
            *(value(f"{n}_out", TensorProto.FLOAT, [count, "b", 4]) for n in names),
        ],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lstm_side(*, cell: bool) -> str:
    names = ["h", "c"] if cell else ["h"]
    states = "".join(f'[[states]]\ninput = "{n}"\noutput = "{n}_out"\nbatch_axis = 1\n' for n in names)
    return f'layout = "time_batch"\n{SIDE}{states}'


def save(folder: Path, name: str, model: onnx.ModelProto, sidecar: str) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    path.with_suffix(".toml").write_text(sidecar)
    return path


CONSTANTS = "<int64[2] flat = {1, -1}, int64 axis = {1}, int64[2] one = {1, 3}>"
RESTRICTED = {
    "mean": (lambda: step_model(MEAN), STEP, "rows", r"ReduceMean 'm' reduces over the batch"),
    "reshape": (
        lambda: step_model(RESHAPE, constants=CONSTANTS),
        STEP,
        "rows",
        r"Reshape 'f' has a fixed first size of 1",
    ),
    "fixed_rows": (
        lambda: step_model(FIXED_ROWS, constants=CONSTANTS),
        STEP,
        "rows",
        r"Reshape 'y' has a fixed first size of 1",
    ),
    "quantised": (lambda: step_model(QUANTISED), STEP, "rows", r"DynamicQuantizeLinear 'q' sees all rows"),
    "bidirectional": (
        lambda: lstm_model("bidirectional", cell=True),
        lstm_side(cell=True),
        "steps",
        r"LSTM 'rnn' is bidirectional",
    ),
    "reverse": (
        lambda: lstm_model("reverse", cell=True),
        lstm_side(cell=True),
        "steps",
        r"LSTM 'rnn' runs in reverse",
    ),
}


def loaded(path: Path, **settings: object) -> LoadedModel:
    model = load(open_model(path, path.stem), Settings.load(models=path.parent, **settings), Device())
    model.runner.stop()
    return model


@pytest.mark.parametrize("proof", ["quick", "full"])
@pytest.mark.parametrize("name", RESTRICTED)
def test_a_model_that_is_right_in_one_way_only_runs_that_way(tmp_path: Path, name: str, proof: str) -> None:
    make, sidecar, kind, cause = RESTRICTED[name]
    model = loaded(save(tmp_path, name, make(), sidecar), proof=proof, max_sessions=100)
    (text,) = model.restrictions
    assert text.startswith({"rows": "one session a run: ", "steps": "one timestep a run: "}[kind])
    assert re.search(cause, text)
    assert model.metrics.restricted == {kind}
    assert (model.max_batch == 1) == (kind == "rows")
    assert model.max_chunk == 1


def test_without_the_proof_nothing_is_restricted(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, "mean", step_model(MEAN), STEP), proof="off")
    assert model.restrictions == ()
    assert model.max_batch == 256


def test_an_lstm_that_forgets_its_cell_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "hidden", lstm_model("forward", cell=False), lstm_side(cell=False))
    with pytest.raises(
        ModelLoadError, match=r"hidden\.onnx: .*output 'y' is .*, alone .*LSTM 'rnn' has no initial_c"
    ):
        loaded(path)


def test_a_graph_of_fixed_batch_that_mixes_its_rows_is_refused(tmp_path: Path) -> None:
    model = step_model(MEAN)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ModelLoadError, match=r"output 'y' is .*fixes its batch \(ReduceMean 'm'"):
        loaded(save(tmp_path, "four", model, f"max_batch = 4\n{STEP}batch_axis = 0\nshape = [3]\n"))


def test_an_output_whose_rows_are_fixed_is_refused_by_name_and_size(tmp_path: Path) -> None:
    constants = "<float[1] v = {3}>"
    model = step_model(f"{PLAIN}  version = Identity(v)", outputs=", float[1] version", constants=constants)
    sidecar = STEP.replace('["y"]', '["y", "version"]')
    with pytest.raises(ModelLoadError, match=r"output 'version' has 1 rows .*`max_batch = 1`"):
        loaded(save(tmp_path, "constant", model, sidecar))
    alone = loaded(save(tmp_path, "alone", model, f"max_batch = 1\n{sidecar}"))
    assert alone.max_batch == 1
    assert alone.restrictions == ()


def test_a_model_that_draws_at_random_is_served_unproved(tmp_path: Path) -> None:
    body = "n = RandomNormalLike(x)  s_out = Add(x, s)  y = Add(s_out, n)"
    assert loaded(save(tmp_path, "noise", step_model(body), STEP)).restrictions == ()


@pytest.mark.parametrize("proof", ["quick", "full"])
def test_healthy_models_are_not_restricted(models_dir: Path, tmp_path: Path, proof: str) -> None:
    paths = sorted(models_dir.glob("*.onnx"))
    paths.append(save(tmp_path, "plain", step_model(PLAIN), STEP))
    paths.append(save(tmp_path, "lstm", lstm_model("forward", cell=True), lstm_side(cell=True)))
    assert len(paths) > 3
    for path in paths:
        model = loaded(path, proof=proof, proof_s=60.0)
        assert model.restrictions == (), path.name
        assert model.max_batch == 256


def test_the_proof_leaves_every_slot_and_the_initial_row_as_they_were(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, "plain", step_model(PLAIN), STEP), max_sessions=20, proof="full")
    pool = model.engine.pool
    for row in (0, *range(pool.first_slot, pool.rows)):
        assert not pool.read(row)[0].any()


def test_a_proof_out_of_time_restricts_nothing(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, "mean", step_model(MEAN), STEP), proof_s=1e-9)
    assert model.restrictions == ()


def test_a_model_that_fails_for_random_input_is_served_unproved(tmp_path: Path) -> None:
    table = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 1] x) => (float[batch, 1] y) <float[8] t = {0, 1, 2, 3, 4, 5, 6, 7}>
{ i = Cast <to = 7> (x) y = Gather (t, i) }
"""
    path = save(
        tmp_path,
        "table",
        parser.parse_model(table),
        'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n',
    )
    model = loaded(path)
    assert model.restrictions == ()
    assert model.max_batch > 1


def test_a_model_whose_timesteps_are_too_large_to_compare_is_served_unproved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, "mean", step_model(MEAN), STEP)
    monkeypatch.setattr("streamcell.service.engine.proof._MOST_BYTES", 64)
    with capture_logs() as log:
        assert loaded(path).restrictions == ()
    (entry,) = (each for each in log if each["event"] == "model not proved")
    assert entry["model"] == "mean"
    assert "64 bytes" in entry["reason"]


def test_names_of_a_model_file_are_cut(tmp_path: Path) -> None:
    model = step_model(MEAN)
    model.graph.node[0].name = 50_000 * "n"
    (text,) = loaded(save(tmp_path, "long", model, STEP)).restrictions
    assert "nnn" in text
    assert len(text) < 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    for name, (make, sidecar, _, _) in RESTRICTED.items():
        save(folder, name, make(), sidecar)
    save(folder, "plain", step_model(PLAIN), STEP)
    return folder


def alone(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives for x [steps, 3], one timestep after another."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    border = {node.name: node.shape for node in session.get_inputs()}
    time_first = len(border["x"]) == 3
    states = {
        name: np.zeros([1 if isinstance(size, str) else size for size in shape], np.float32)
        for name, shape in border.items()
        if name != "x"
    }
    outputs = []
    for row in x:
        feed = row[None, None] if time_first else row[None]
        y, *after = session.run(["y", *(f"{name}_out" for name in states)], {"x": feed, **states})
        states = dict(zip(states, after, strict=True))
        outputs.append(y.reshape(-1))
    return np.stack(outputs)


@pytest.mark.conformance
def test_sixteen_sessions_at_random_chunk_sizes_get_what_onnx_runtime_gives(
    folder: Path, start_server: Callable[..., ServerProcess], interleaved: Callable[..., np.ndarray]
) -> None:
    server = start_server(folder)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((16, 12, 3)).astype(np.float32)
    x[::2] *= 100
    with connect(server.target) as client:
        for name in (*RESTRICTED, "plain"):
            restrictions = list(client.model(name).restrictions)
            assert len(restrictions) == (name in RESTRICTED), name
        got = interleaved(client, dict.fromkeys((*RESTRICTED, "plain"), x), 3)
    for name, outputs in got.items():
        expected = np.stack([alone(folder / f"{name}.onnx", row) for row in x])
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    metrics = server.metrics()
    assert 'streamcell_model_restricted{kind="rows",model="mean",version="1"} 1.0' in metrics
    assert 'streamcell_model_restricted{kind="rows",model="plain",version="1"} 0.0' in metrics
