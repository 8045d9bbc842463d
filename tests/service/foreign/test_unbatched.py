"""Models that work on one session and have no batch axis: detected or said, and served right to many sessions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.load_errors import DetectionError, SidecarError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support import onnx_files

W = ", ".join(f"{0.1 * (i % 5) - 0.2:.1f}" for i in range(12))
R = ", ".join(f"{0.1 * (i % 7) - 0.3:.1f}" for i in range(16))
RNN = f"""<float[1,4,3] W = {{{W}}}, float[1,4,4] R = {{{R}}}, int64[1] one = {{1}}> {{
    wide = Unsqueeze(x, one)  h3 = Unsqueeze(h, one)  all, last = RNN<hidden_size = 4>(wide, W, R, , , h3)
    two = Squeeze(all, one)  y = Squeeze(two, one)  h_next = Squeeze(last, one)
}}"""
SCALED = "m = ReduceMean<keepdims = 0>(x)  h_next = Add(h, m)  s = ReduceMean<keepdims = 0>(h_next)"
SIDE = 'inputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "h"\noutput = "h_next"\n'
NONE = 'batch_axis = "none"\n'

# Each: the graph; a sidecar or None; the shape of a client's step.
MODELS: dict[str, tuple[str, str | None, tuple[int, ...]]] = {
    "one_flat_state": (
        """(float[6] frame, float[8] states) => (float[6] y, float[8] new_states, float[1] level)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] six = {6}, int64[1] eight = {8}> {
            end = Slice(states, two, eight)  y = Add(frame, end)  old = Slice(states, six, eight)
            new_states = Concat<axis = 0>(old, y)  level = ReduceSum(y, zero)
        }""",
        None,
        (6,),
    ),
    "layers_without_a_batch": (
        """(float[3] x, float[2,4] h) => (float[3] y, float[2,4] h_next) {
            m = ReduceMean<keepdims = 0>(x)  a = Sin(h)  h_next = Add(a, m)  s = ReduceMean<keepdims = 0>(h_next)
            y = Mul(x, s)
        }""",
        None,
        (3,),
    ),
    "scalars": (
        """(float x, float h) => (float y, float h_next) <float half = {0.5}> {
            k = Mul(h, half)  h_next = Add(k, x)  y = Tanh(h_next)
        }""",
        None,
        (),
    ),
    "scalars_of_opset_11": (
        """(float x, float h) => (float y, float h_next) {
            k = Sin(h)  h_next = Add(k, x)  y = Tanh(h_next)
        }""",
        None,
        (),
    ),
    "over_time": (
        f"(float[time,3] x, float[1,4] h) => (float[time,4] y, float[1,4] h_next) {RNN}",
        None,
        (3,),
    ),
    "over_time_said": (
        f"(float[n,3] x, float[1,4] h) => (float[n,4] y, float[1,4] h_next) {RNN}",
        f"time_axis = 0\n{NONE}{SIDE}{STATE}",
        (3,),
    ),
    "batch_time_said": (
        f"(float[n,3] x, float[1,4] h) => (float[n,4] y, float[1,4] h_next) {RNN}",
        f'layout = "batch_time"\n{NONE}{SIDE}{STATE}',
        (3,),
    ),
    "only_the_state": (
        f"(float[1,3] x, float[2,5] h) => (float[1,3] y, float[2,5] h_next) {{ {SCALED}  y = Mul(x, s) }}",
        None,
        (3,),
    ),
    "only_the_state_said": (
        f"(float[batch,3] x, float[l,n] h) => (float[batch,3] y, float[l,n] h_next) {{ {SCALED}  y = Mul(x, s) }}",
        f'layout = "batch"\n{SIDE}{STATE}{NONE}shape = [2, 5]\ninitial = 0.25\n',
        (3,),
    ),
    "an_output_without": (
        f"""(float[1,3] x, float[5] h) => (float[3] y, float[5] h_next) <int64[1] zero = {{0}}> {{
            {SCALED}  z = Mul(x, s)  y = Squeeze(z, zero)
        }}""",
        f'layout = "batch"\ninputs = ["x"]\noutputs = [{{ name = "y", {NONE.strip()} }}]\n{STATE}{NONE}',
        (3,),
    ),
}
INITIAL = {"only_the_state_said": 0.25}
OPEN = {"only_the_state_said": (2, 5)}


def save(folder: Path, name: str, graph: str, sidecar: str | None = None) -> Path:
    opset = 11 if name.endswith("opset_11") else 18
    return onnx_files.save(onnx_files.parsed(graph, opset), folder / f"{name}.onnx", sidecar)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("unbatched")
    return {name: save(folder, name, graph, sidecar) for name, (graph, sidecar, _) in MODELS.items()}


def alone(path: Path, x: np.ndarray, name: str) -> np.ndarray:
    """What ONNX Runtime gives for x [steps, *step_shape], a timestep after another, in the file's own shapes."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given, state = session.get_inputs()
    held = np.full(OPEN.get(name, state.shape), INITIAL.get(name, 0.0), np.float32)
    wanted = [each.name for each in session.get_outputs()[:2]]
    outputs = []
    for step in x:
        feed = np.array(step).reshape([1] * (len(given.shape) - step.ndim) + list(step.shape))
        y, held = map(np.asarray, session.run(wanted, {given.name: feed, state.name: held}))
        outputs.append(y.reshape(y.shape[-1:]))
    return np.stack(outputs)


@pytest.mark.conformance
def test_sixteen_sessions_get_what_onnx_runtime_gives(
    paths: dict[str, Path], start_server: Callable[..., ServerProcess], interleaved: Callable[..., np.ndarray]
) -> None:
    server = start_server(next(iter(paths.values())).parent)
    rng = np.random.default_rng(11)
    with connect(server.target) as client:
        for name in MODELS:
            (restriction,) = client.model(name).restrictions
            assert re.fullmatch(r"one session a run: .* without a batch axis", restriction), name
        x = {
            name: rng.standard_normal((16, 12, *shape)).astype(np.float32)
            for name, (_, _, shape) in MODELS.items()
        }
        got = interleaved(client, x, 1)
    for name, rows in x.items():
        expected = np.stack([alone(paths[name], row, name) for row in rows])
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("proof", ["off", "full"])
def test_the_proof_finds_nothing_more_in_them(paths: dict[str, Path], proof: str) -> None:
    for path in paths.values():
        settings = Settings.load(models=path.parent, proof=proof, max_sessions=20)
        model = load(open_model(path, path.stem), settings, Device())
        model.runner.stop()
        (text,) = model.restrictions
        assert text.endswith("without a batch axis"), path.name
        assert model.max_batch == 1
        assert (model.max_chunk > 1) == ("time" in path.stem)
        assert model.metrics.restricted == {"rows"}


PLAIN = "{ h_next = Add(h, x)  y = Identity(h_next) }"
UNCLEAR = {
    "a_batch_of_three_or_none": f"(float[3] x, float[3] h) => (float[3] y, float[3] h_next) {PLAIN}",
    "stateless": "(float[480] x) => (float[480] y) { y = Tanh(x) }",
    "a_batch_or_time": f"(float[n,3] x, float[1,4] h) => (float[n,4] y, float[1,4] h_next) {RNN}",
    "a_constant_perhaps": (
        "(float[3] x, float limit, float[4] h) => (float[3] y, float[4] h_next) "
        "{ y = Mul(x, limit)  h_next = Add(h, limit) }"
    ),
    "one_with_and_one_without": (
        "(float[1,3] x, float[5] z, float[4] h) => (float[1,3] y, float[4] h_next) "
        "{ s = ReduceMean<keepdims = 0>(z)  y = Mul(x, s)  h_next = Add(h, s) }"
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_may_have_a_batch_axis_or_none_is_refused_with_the_key_to_write(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(DetectionError, match=r'`batch_axis = "none"`'):
        open_model(save(tmp_path, name, UNCLEAR[name]), name)


@pytest.mark.parametrize(
    ("sidecar", "error"),
    [
        (f'layout = "batch"\n{NONE}max_batch = 8\n{SIDE}{STATE}', r"max_batch: 'h' has no batch axis"),
        (f"time_axis = 1\n{NONE}{SIDE}{STATE}", r"time_axis: without a batch axis the time axis is 0"),
        (f'layout = "batch"\n{SIDE}{STATE}', r"states: 'h': set batch_axis, \"none\" if it has none"),
        (f'layout = "batch"\nbatch_axis = 0\n{SIDE}{STATE}', r"batch_axis: Input should be 'none', got 0"),
        (f'layout = "batch"\n{SIDE}{STATE}batch_axis = "no"\n', r"states\.0\.batch_axis.*'none'.*got 'no'"),
    ],
)
def test_a_sidecar_that_contradicts_itself_names_the_key(tmp_path: Path, sidecar: str, error: str) -> None:
    graph = "(float[3] x, float[4] h) => (float[3] y, float[4] h_next) { y = Tanh(x)  h_next = Tanh(h) }"
    with pytest.raises(SidecarError, match=error):
        open_model(save(tmp_path, "m", graph, sidecar), "m")


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "foreign-models.md").read_text(encoding="utf-8")
    (sidecar,) = re.findall(r"### Models without a batch axis.*?```toml\n(.*?)```", page, re.DOTALL)
    graph = """(float[480] input_frame, float[45304] states, float atten_lim_db)
        => (float[480] enhanced_frame, float[45304] new_states, float[1] lsnr) <int64[1] zero = {0}> {
            enhanced_frame = Mul(input_frame, atten_lim_db)  new_states = Mul(states, atten_lim_db)
            lsnr = ReduceSum(input_frame, zero)
        }"""
    signature = open_model(save(tmp_path, "filter", graph, sidecar), "filter").signature
    assert signature.inputs[0].step_shape == (480,)
    assert signature.states[0].shape == (45304,)
    assert signature.max_batch == 1
