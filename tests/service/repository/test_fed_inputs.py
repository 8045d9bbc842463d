"""Inputs that no client sends: the server feeds them, and keeps context, as ONNX Runtime is fed by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest

from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.errors import ServiceError
from streamcell.service.graph.pooled import pool_states
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output, Work
from streamcell.service.settings import Settings
from tests.support import onnx_files

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], list[Array]]
SESSIONS, STEPS = 16, 24


class Case(NamedTuple):
    """A model, its sidecar, and its run by hand: x [steps, *step] → y [steps, …]."""

    graph: str
    sidecar: str
    by_hand: Callable[[Run, Array], Array]
    step: tuple[int, ...]
    opset: int = 17


def samples_before_each(run: Run, x: Array) -> Array:
    context, state, made = np.zeros(4, np.float32), np.zeros((1, 3), np.float32), []
    for step in x:
        whole = np.concatenate([context, step])
        y, state = run({"x": whole[None], "s": state})
        context = whole[-4:]
        made.append(y[0])
    return np.array(made)


def frames_before_each(run: Run, x: Array) -> Array:
    """An image-like step [2, 3] with five columns of context: more than a step has."""
    whole = np.concatenate([np.zeros((len(x), 2, 0), np.float32), x], 2)
    line = np.concatenate([np.zeros((2, 5), np.float32), *whole], 1)
    return np.array([run({"x": line[None, :, 3 * t : 3 * t + 8]})[0][0] for t in range(len(x))])


def timesteps_before(run: Run, x: Array) -> Array:
    return run({"x": np.concatenate([np.zeros((3, 2), np.float32), x])[None]})[0][0]


def timesteps_before_time_first(run: Run, x: Array) -> Array:
    return run({"x": np.concatenate([np.zeros((3, 2), np.float32), x])[:, None]})[0][:, 0]


def counted(run: Run, x: Array) -> Array:
    index = np.arange(len(x))[None]
    return run({"x": x[None], "first": index == 0, "at": index, "n": np.array([len(x)], np.int32)})[0][0]


def counted_time_first(run: Run, x: Array) -> Array:
    index = np.arange(len(x), dtype=np.int32)[:, None, None]
    return run({"x": x[:, None], "first": (index == 0).astype(np.float32)[..., 0], "at": index})[0][:, 0]


def one_number_a_row(run: Run, x: Array) -> Array:
    state, made = np.zeros((1, 2), np.float32), []
    for t, step in enumerate(x):
        feeds = {"x": step[None], "first": np.array([[t == 0]]), "n": np.ones(1, np.float32)}
        y, state = run({**feeds, "at": np.array([t]), "s": state})
        made.append(y[0])
    return np.array(made)


def one_number_a_run(run: Run, x: Array) -> Array:
    made = [
        run({"x": step[None], "at": np.array(t), "first": np.array([t == 0])}) for t, step in enumerate(x)
    ]
    return np.array([y[0] for (y,) in made])


def no_batch(run: Run, x: Array) -> Array:
    line = np.concatenate([np.zeros(2, np.float32), *x])
    return np.array([run({"x": line[8 * t : 8 * t + 10], "at": np.array(t)})[0] for t in range(len(x))])


def no_batch_but_time(run: Run, x: Array) -> Array:
    first = (np.arange(len(x)) == 0).astype(np.float32)
    return run({"x": x, "first": first, "n": np.array(len(x))})[0]


def chunks_place(run: Run, x: Array) -> Array:
    """The graph counts on from the chunk's first timestep by itself; the whole sequence is one chunk here."""
    return run({"x": x[None], "at": np.array([0])})[0][0]


WEIGHTS = ", ".join(f"{0.1 * (i % 7 - 3):.1f}" for i in range(36))
CASES = {
    "samples": Case(
        "(float[b, samples] x, float[b, 3] s) => (float[b, 3] y, float[b, 3] s_out)"
        "{ k = Constant<value = float[12, 3] {" + WEIGHTS + "}>()"
        " m = MatMul(x, k) a = Add(m, s) s_out = Tanh(a) y = Identity(a) }",
        'layout = "batch"\ninputs = [{ name = "x", step_shape = [8], context = 4 }]\noutputs = ["y"]\n'
        '[[states]]\ninput = "s"\noutput = "s_out"\n',
        samples_before_each,
        (8,),
    ),
    "columns": Case(
        "(float[b, 2, 8] x) => (float[b, 8] y)"
        "{ k = Constant<value = float[1, 2, 1] {1, 2}>() m = Mul(x, k) y = ReduceSum<axes = [1], keepdims = 0>(m) }",
        'layout = "batch"\ninputs = [{ name = "x", context = 5, context_axis = 1 }]\noutputs = ["y"]\n',
        frames_before_each,
        (2, 3),
        11,
    ),
    "timesteps": Case(
        "(float[b, t, 2] x) => (float[b, u, 1] y)"
        "{ k = Constant<value = float[1, 2, 4] {1, 2, 3, 4, 5, 6, 7, 8}>() a = Transpose<perm = [0, 2, 1]>(x)"
        " c = Conv(a, k) y = Transpose<perm = [0, 2, 1]>(c) }",
        'layout = "batch_time"\ninputs = [{ name = "x", context = 3 }]\noutputs = ["y"]\n',
        timesteps_before,
        (2,),
    ),
    "timesteps first": Case(
        "(float[t, b, 2] x) => (float[u, b, 1] y)"
        "{ k = Constant<value = float[1, 2, 4] {1, 2, 3, 4, 5, 6, 7, 8}>() a = Transpose<perm = [1, 2, 0]>(x)"
        " c = Conv(a, k) y = Transpose<perm = [2, 0, 1]>(c) }",
        'layout = "time_batch"\ninputs = [{ name = "x", context = 3 }]\noutputs = ["y"]\n',
        timesteps_before_time_first,
        (2,),
    ),
    "counted": Case(
        "(float[b, t, 2] x, bool[b, t] first, int64[b, t] at, int32[b] n) => (float[b, t, 2] y)"
        "{ f = Cast<to = 1>(first) g = Cast<to = 1>(at) h = Constant<value = float {1000}>() i = Mul(f, h)"
        " j = Add(g, i) a = Constant<value = int64[1] {2}>() k = Unsqueeze(j, a) y = Add(x, k) }",
        'layout = "batch_time"\ninputs = ["x", { name = "first", from = "first_step" },'
        ' { name = "at", from = "step_index" }, { name = "n", from = "lengths" }]\noutputs = ["y"]\n',
        counted,
        (2,),
    ),
    "counted time first": Case(
        "(float[t, b, 2] x, float[t, b] first, int32[t, b, 1] at) => (float[t, b, 2] y)"
        "{ g = Cast<to = 1>(at) h = Constant<value = float {1000}>() i = Mul(first, h)"
        " a = Constant<value = int64[1] {2}>() k = Unsqueeze(i, a) j = Add(g, k) y = Add(x, j) }",
        'layout = "time_batch"\ninputs = [{ name = "at", from = "step_index" }, "x",'
        ' { name = "first", from = "first_step" }]\noutputs = ["y"]\n',
        counted_time_first,
        (2,),
    ),
    "a row": Case(
        "(float[b, 2] x, bool[b, 1] first, int64[b] at, float[b] n, float[b, 2] s)"
        " => (float[b, 2] y, float[b, 2] s_out)"
        "{ s_out = Where(first, x, s) g = Cast<to = 1>(at) h = Mul(g, n) a = Constant<value = int64[1] {1}>()"
        " k = Unsqueeze(h, a) y = Add(s_out, k) }",
        'layout = "batch"\ninputs = ["x", { name = "first", from = "first_step" }, { name = "n", from = "lengths" },'
        ' { name = "at", from = "step_index" }]\noutputs = ["y"]\n[[states]]\ninput = "s"\noutput = "s_out"\n',
        one_number_a_row,
        (2,),
    ),
    "a run": Case(
        "(float[b, 2] x, int64 at, bool[1] first) => (float[b, 2] y)"
        "{ g = Cast<to = 1>(at) f = Cast<to = 1>(first) h = Sub(g, f) y = Add(x, h) }",
        'layout = "batch"\nmax_batch = 1\ninputs = ["x", { name = "first", from = "first_step" },'
        ' { name = "at", from = "step_index" }]\noutputs = ["y"]\n',
        one_number_a_run,
        (2,),
    ),
    "no batch": Case(
        "(float[10] x, int64 at) => (float[10] y) { g = Cast<to = 1>(at) y = Add(x, g) }",
        'layout = "batch"\nbatch_axis = "none"\ninputs = [{ name = "x", context = 2 },'
        ' { name = "at", from = "step_index" }]\noutputs = ["y"]\n',
        no_batch,
        (8,),
    ),
    "no batch but time": Case(
        "(float[t, 2] x, float[t] first, int64 n) => (float[t, 2] y)"
        "{ a = Constant<value = int64[1] {1}>() f = Unsqueeze(first, a) y = Add(x, f) }",
        'time_axis = 0\nbatch_axis = "none"\ninputs = ["x", { name = "first", from = "first_step" },'
        ' { name = "n", from = "lengths" }]\noutputs = ["y"]\n',
        no_batch_but_time,
        (2,),
    ),
    "a chunk's place": Case(
        "(float[b, t, 2] x, int64[b] at) => (float[b, t, 2] y)"
        "{ one = Constant<value = float {1}>() z = Mul(x, one) zero = Constant<value = float {0}>() w = Mul(x, zero)"
        " ones = Add(w, one) a = Constant<value = int64 {1}>() c = CumSum(ones, a) g = Cast<to = 1>(at)"
        " axes = Constant<value = int64[2] {1, 2}>() h = Unsqueeze(g, axes) i = Add(c, h) y = Add(z, i) }",
        'layout = "batch_time"\ninputs = ["x", { name = "at", from = "step_index" }]\noutputs = ["y"]\n',
        chunks_place,
        (2,),
    ),
}  # fmt: skip


def save(folder: Path, case: Case) -> Path:
    return onnx_files.save(onnx_files.parsed(case.graph, case.opset), folder / "fed.onnx", case.sidecar)


class Client:
    """One session: what it sent and what came back."""

    def __init__(self, model: LoadedModel, x: Array, opening: tuple[bytes, ...] = ()) -> None:
        self.x, self.sent = x, 0
        self.answers: list[bytes] = []
        self.failure: ServiceError | None = None
        self.done = threading.Event()
        self._model = model
        self.session = model.batcher.open("test", self)
        self.session.opening = opening

    def send(self, steps: int) -> None:
        part = self.x[self.sent : self.sent + steps]
        self.sent += len(part)
        self._model.batcher.submit(self.session, Work((part.tobytes(),), len(part), Output.ALL, 0, 0.0))

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        self.answers.append(outputs[0])
        if step_index == len(self.x):
            self.done.set()

    def resume(self) -> None:
        pass

    def fail(self, error: ServiceError) -> None:
        self.failure = error
        self.done.set()


@pytest.fixture(params=[False, True], ids=["host", "apart"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Callable[..., LoadedModel]]:
    """Loads a model on the CPU, or on the way that a card would take."""
    models = []

    def make(path: Path, **settings: Any) -> LoadedModel:
        configured = Settings.load(models=path.parent, max_sessions=40, max_batch=6, max_chunk=5, **settings)
        models.append(load(open_model(path, path.stem), configured, Device(apart=request.param)))
        return models[-1]

    yield make
    for model in models:
        model.runner.stop()


@pytest.mark.parametrize("name", CASES)
def test_sessions_get_what_the_model_gives_by_hand(
    name: str, loaded: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    case = CASES[name]
    path = save(tmp_path, case)
    model = loaded(path)
    assert all("without a batch axis" in each for each in model.restrictions)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((SESSIONS, STEPS, *case.step)).astype(np.float32)
    clients = [Client(model, each) for each in x]
    while waiting := [client for client in clients if client.sent < STEPS]:
        waiting[rng.integers(len(waiting))].send(int(rng.integers(1, 8)))
    alone = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for client in clients:
        assert client.done.wait(60)
        assert client.failure is None
        wanted = case.by_hand(lambda feeds: alone.run(None, feeds), client.x)
        got = np.frombuffer(b"".join(client.answers), np.float32).reshape(wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


# Steps so wide that what stands behind them moves with the number of rows.
WIDE = 40
GIVEN = Case(
    "(float[b, 40] x, float[b, 40] speaker, int64[b] language, float[b, 40] h)"
    " => (float[b, 40] y, float[b, 40] h_next)"
    "{ table = Constant<value = float[5, 1] {10, 20, 30, 40, 50}>() row = Gather(table, language)"
    " scaled = Mul(x, speaker) h_next = Add(h, scaled) y = Add(h_next, row) }",
    'layout = "batch"\noutputs = ["y"]\ninputs = ["x", { name = "speaker", at = "open" },'
    ' { name = "language", at = "open" }]\n[[states]]\ninput = "h"\noutput = "h_next"\n',
    counted,
    (WIDE,),
)


def test_what_sessions_are_given_stays_their_own(loaded: Callable[..., LoadedModel], tmp_path: Path) -> None:
    model = loaded(save(tmp_path, GIVEN))
    assert model.restrictions == ()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((SESSIONS, STEPS, WIDE)).astype(np.float32)
    speaker = rng.standard_normal((SESSIONS, WIDE)).astype(np.float32)
    language = rng.integers(0, 5, SESSIONS)
    clients: list[tuple[int, Client]] = []
    for row in rng.permutation(SESSIONS).tolist():
        clients.append((row, Client(model, x[row], (speaker[row].tobytes(), language[row].tobytes()))))
        for place in rng.integers(0, len(clients), 8).tolist():
            _, client = clients[place]
            if client.sent < STEPS:
                client.send(int(rng.integers(1, 4)))
    for row, client in clients:
        while client.sent < STEPS:
            client.send(3)
        assert client.done.wait(60)
        assert client.failure is None
        wanted = np.cumsum(x[row] * speaker[row], 0) + 10 * (1 + language[row])
        got = np.frombuffer(b"".join(client.answers), np.float32).reshape(STEPS, WIDE)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_padding_holds_no_index_that_another_shape_of_run_left_there(apart: bool, tmp_path: Path) -> None:
    """It would fail the run for all rows."""
    file, device = open_model(save(tmp_path, GIVEN), "fed"), Device(apart=apart)
    pooled = pool_states(file.load(), file.signature, scatter=device.scatter, commit_last=True)
    engine = Engine(
        pooled, file.signature, EngineOptions(device=device, max_sessions=4, max_batch=6, max_chunk=1)
    )
    for rows in (6, 3, 1):
        staged = engine.stage(rows, 1)
        speaker, language = staged.given
        speaker[:] = 127
        language[:rows] = 0
        staged.read[:rows] = INITIAL_ROW
        staged.write[:rows, 0] = engine.pool.scratch_rows[:rows]
        staged.lengths[:rows] = 1
        engine.pad(staged, rows)
        staged.go()


def test_the_proof_gives_values_of_their_own_and_finds_what_mixes_them(
    loaded: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    mixed = GIVEN.graph.replace("Mul(x, speaker)", "Mul(x, mean)").replace(
        " row = ", " mean = ReduceMean<axes = [0]>(speaker) row = "
    )
    model = loaded(save(tmp_path, GIVEN._replace(graph=mixed)))
    (restriction,) = model.restrictions
    assert "one session a run" in restriction
    assert "ReduceMean 'mean' reduces over the batch" in restriction


def test_an_index_past_a_table_of_positions_ends_the_session_that_came_so_far(
    loaded: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    case = Case(
        "(float[b, 2] x, int64[b] at) => (float[b, 2] y)"
        "{ k = Constant<value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}>() p = Gather(k, at) y = Add(x, p) }",
        'layout = "batch"\ninputs = ["x", { name = "at", from = "step_index" }]\noutputs = ["y"]\n',
        one_number_a_row, (2,),
    )  # fmt: skip
    model = loaded(save(tmp_path, case))
    far, near = Client(model, np.zeros((5, 2), np.float32)), Client(model, np.ones((3, 2), np.float32))
    for _ in range(5):
        far.send(1)
        near.send(1) if near.sent < 3 else None
    assert far.done.wait(60)
    assert near.done.wait(60)
    assert far.failure is not None
    assert (near.failure, len(near.answers), len(far.answers)) == (None, 3, 4)


BAD = {
    "all fed": ("", "", 'inputs = [{ name = "x", from = "step_index" }]', "clients send none in their messages"),
    "unknown source": ("", "", 'inputs = ["x", { name = "r", from = "index" }]', r"from: .*'step_index'.*got 'index'"),
    "two sources": (
        ", int64[b] r", "", 'inputs = ["x", { name = "r", from = "step_index", context = 3 }]', "leave out context"),
    "an axis without context": ("", "", 'inputs = [{ name = "x", context_axis = 0 }]', "context_axis needs context"),
    "many numbers": (
        ", int64[b, 3] r", "", 'inputs = ["x", { name = "r", from = "step_index" }]',
        r"'r': from = 'step_index': expected one number a session, the graph has int64\[b, 3\]"),
    "one number for all": (
        ", int64 r", "", 'inputs = ["x", { name = "r", from = "step_index" }]', "one number for all .* max_batch = 1"),
    "truth of an index": (
        ", bool[b] r", "", 'inputs = ["x", { name = "r", from = "step_index" }]', r"a tensor of numbers.*bool\[b\]"),
    "no room for a step": ("", "", 'inputs = [{ name = "x", context = 8 }]', "leaves no elements for a step"),
    "too many elements": (
        "", "", 'inputs = [{ name = "x", context = 4, step_shape = [8] }]', r"make 12 elements on axis 0, .*\[b, 8\]"),
    "an opening without a place for its batch": (
        ", int64 r", "", 'inputs = ["x", { name = "r", at = "open" }]', 'set batch_axis = "none", and runs have one'),
    "an opening of open size": (
        ", float[b, n] r", "", 'inputs = ["x", { name = "r", at = "open" }]', "axis 1 .n. .*; set step_shape"),
    "a default of another size": (
        ", float[b, 3] r", "", 'inputs = ["x", { name = "r", at = "open", default = [1, 2] }]', "2 initial values"),
    "a default that does not fit": (
        ", int64[b] r", "", 'inputs = ["x", { name = "r", at = "open", default = 0.5 }]', "0.5 does not fit int64"),
    "a default for each message": ("", "", 'inputs = [{ name = "x", default = 1 }]', 'default needs at = "open"'),
    "an opening with context": (
        "", "", 'inputs = [{ name = "x", at = "open", context = 1 }]', "has no context"),
    "nothing in messages": ("", "", 'inputs = [{ name = "x", at = "open" }]', "clients send none in their messages"),
    "which axis": (
        "", "float[b, 2, 4]", 'inputs = [{ name = "x", context = 1 }]', "set context_axis, .*, below 2"),
    "twice the lengths": (
        ", int32[b] r, int32[b] q", "float[b, t, 8]",
        'lengths = "q"\ninputs = ["x", { name = "r", from = "lengths" }]', "lengths = 'q' already takes the lengths"),
    "context and lengths": (
        ", int32[b] r", "float[b, t, 8]",
        'inputs = [{ name = "x", context = 2 }, { name = "r", from = "lengths" }]', "leave lengths out"),
    "an axis and timesteps": (
        "", "float[b, t, 8]", 'inputs = [{ name = "x", context = 2, context_axis = 0 }]', "leave context_axis out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_fed_is_refused_by_name(case: str, tmp_path: Path) -> None:
    more, shape, inputs, message = BAD[case]
    x = shape or "float[b, 8]"
    layout = "batch_time" if ", t, " in shape else "batch"
    graph = f"({x} x{more}) => ({x} y) {{ y = Identity(x) }}"
    sidecar = f'layout = "{layout}"\noutputs = ["y"]\n{inputs}\n'
    with pytest.raises(ModelLoadError, match=message):
        open_model(save(tmp_path, Case(graph, sidecar, counted, ())), "fed")
