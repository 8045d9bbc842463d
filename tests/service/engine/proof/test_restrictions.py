"""A model whose answers depend on its batch is restricted or refused when it is loaded; healthy ones are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import structlog
from structlog.testing import capture_logs

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.graph.pooled import pool_states
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.lifecycle.proved import proved_engine
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed

from .models import (
    CASES,
    EIGHT_ROWS,
    HEALTHY,
    MEAN,
    PLAIN,
    STEP,
    STEPS,
    quantised_lstm,
    recurrent,
    save,
    step_model,
    stepped,
)

DEVICES = {"cpu": Device(), "apart": Device(apart=True)}


def loaded(path: Path, device: Device | None = None, **settings: object) -> LoadedModel:
    model = load(
        open_model(path, path.stem), Settings.load(models=path.parent, **settings), device or Device()
    )
    model.runner.stop()
    return model


@pytest.mark.parametrize("proof", ["quick", "full"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_a_model_that_is_right_in_one_way_only_runs_that_way(
    tmp_path: Path, name: str, device: str, proof: str
) -> None:
    case = CASES[name]
    path = save(tmp_path, name, *case.make())
    # As a card is used, every shape of run up to the largest is warmed up.
    most = {"max_batch": 4} if device == "apart" else {}
    model = loaded(path, DEVICES[device], proof=proof, max_sessions=100, **most)
    if case.full and proof == "quick":
        assert model.restrictions == ()
        return
    # There all chunks are padded to fixed sizes.
    kinds, chunks = (STEPS, 1) if (device, name) == ("apart", "ragged") else (case.kinds, case.chunks)
    ways = {"rows": "one session a run: ", "steps": "one timestep a run: "}
    assert {
        kind for kind, way in ways.items() for text in model.restrictions if text.startswith(way)
    } == kinds
    assert re.search(case.cause, "; ".join(model.restrictions))
    assert model.metrics.restricted == kinds
    assert (model.max_batch == 1) == ("rows" in kinds)
    assert model.max_chunk == chunks


def test_what_a_card_is_to_run_is_proved_with_a_card_s_padding(tmp_path: Path) -> None:
    """Chunks are padded on a card even if one session runs alone, so such a model gets one timestep a run there."""
    path = save(tmp_path, "ragged", *CASES["ragged"].make())
    file, settings = open_model(path, "ragged"), Settings.load(models=tmp_path, max_batch=4, max_sessions=20)
    graph = file.load()
    pooled = pool_states(graph, file.signature, file.constants, scatter="elements")

    def make(options: EngineOptions) -> Engine:
        """On this machine the copying device stands for the card."""
        device = options.device if options.device.kind == "cpu" else Device(apart=True)
        return Engine(pooled, file.signature, replace(options, device=device))

    options = EngineOptions.of(settings, Device("cuda"), stateful=True)
    proved = proved_engine(make, options, graph, settings, structlog.get_logger(), "")
    engine, restrictions = proved.engine, proved.restrictions
    assert list(restrictions) == ["steps"]
    assert engine.max_chunk == 1


def test_without_the_proof_nothing_is_restricted(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, "mean", step_model(MEAN), STEP), proof="off")
    assert model.restrictions == ()
    assert model.max_batch == 256


@pytest.mark.parametrize("make", [lambda: recurrent("LSTM", "forward", "h"), lambda: quantised_lstm("h")])
def test_an_lstm_that_forgets_its_cell_is_refused(
    tmp_path: Path, make: Callable[[], tuple[onnx.ModelProto, str]]
) -> None:
    path = save(tmp_path, "hidden", *make())
    with pytest.raises(
        ModelLoadError,
        match=r"hidden\.onnx: .*output 'y' is .*, alone .*LSTM 'rnn(_quant)?' has no initial_c",
    ):
        loaded(path)


def test_a_graph_of_fixed_batch_that_mixes_its_rows_is_refused(tmp_path: Path) -> None:
    model = step_model(MEAN)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ModelLoadError, match=r"output 'y' is .*fixes its batch \(ReduceMean 'm'"):
        loaded(save(tmp_path, "four", model, f"max_batch = 4\n{STEP}batch_axis = 0\nshape = [3]\n"))


def test_a_model_that_runs_for_eight_rows_only_is_refused_with_the_operator(tmp_path: Path) -> None:
    path = save(tmp_path, "eight", *stepped(EIGHT_ROWS))
    with pytest.raises(
        ModelLoadError,
        match=r"with one session and one timestep it fails: .*Reshape 'y' has a fixed first size of 8",
    ):
        loaded(path)


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
    paths += [save(tmp_path, name, *make()) for name, make in HEALTHY.items()]
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
(float[batch, 1] x) => (float[batch, 1] y) <float[8] t = {0, 1, 2, 3, 4, 5, 6, 7}>
{ i = Cast <to = 7> (x) y = Gather (t, i) }
"""
    path = save(
        tmp_path,
        "table",
        parsed(table),
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


# Those that only the full proof finds are served wrong after a quick one.
SERVED = [*(name for name, case in CASES.items() if not case.full), *HEALTHY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    for name in SERVED:
        save(folder, name, *(CASES[name].make() if name in CASES else HEALTHY[name]()))
    return folder


def alone(path: Path, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives for x [steps, 3], one timestep after another."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    interface = {node.name: node.shape for node in session.get_inputs()}
    time_first = len(interface["x"]) == 3
    lengths = {"lengths": np.ones(1, np.int64)} if "lengths" in interface else {}
    states = {
        name: np.zeros([1 if isinstance(size, str) else size for size in shape], np.float32)
        for name, shape in interface.items()
        if name not in ("x", "lengths")
    }
    outputs = []
    for row in x:
        feed = row[None, None] if time_first else row[None]
        y, *after = session.run(["y", *(f"{name}_out" for name in states)], {"x": feed, **lengths, **states})
        states = dict(zip(states, after, strict=True))
        outputs.append(y.reshape(-1))
    return np.stack(outputs)


@pytest.mark.conformance
def test_sixteen_sessions_at_random_chunk_sizes_get_what_onnx_runtime_gives(
    folder: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, np.ndarray]],
) -> None:
    server = start_server(folder)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((16, 12, 3)).astype(np.float32)
    x[::2] *= 100
    with connect(server.target) as client:
        for name in SERVED:
            kinds = CASES[name].kinds if name in CASES else ()
            assert len(client.model(name).restrictions) == len(kinds), name
        got = interleaved(client, dict.fromkeys(SERVED, x), 3)
    for name, outputs in got.items():
        expected = np.stack([alone(folder / f"{name}.onnx", row) for row in x])
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    metrics = server.metrics()
    assert 'streamcell_model_restricted{kind="rows",model="mean",version="1"} 1.0' in metrics
    assert 'streamcell_model_restricted{kind="rows",model="plain",version="1"} 0.0' in metrics
