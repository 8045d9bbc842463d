"""Pipelines: several files are served as one model, with the states of all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper, parser

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import discover, open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed
from tests.support.pipelines import (
    FIRST,
    PIPELINES,
    PLAIN,
    SECOND,
    SIDE,
    STAGES,
    WEIGHED,
    by_hand,
    two_readers,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for make, _, _ in PIPELINES.values():
        make(folder)
    return folder


@pytest.mark.conformance
def test_sixteen_sessions_get_what_the_files_give_one_after_another(
    folder: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, np.ndarray]],
) -> None:
    server = start_server(folder)
    rng = np.random.default_rng(2)
    x = {
        name: rng.standard_normal((16, 12, *shape)).astype(np.float32)
        for name, (_, _, shape) in PIPELINES.items()
    }
    with connect(server.target) as client:
        assert sorted(each.name for each in client.models()) == sorted(PIPELINES)
        got = interleaved(client, x, 5)
    for name, rows in x.items():
        expected = np.stack([by_hand(folder, name, row) for row in rows])
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_pipeline_is_proved_and_its_states_are_in_one_pool(folder: Path) -> None:
    files = {file.name: file for file in discover(folder)}
    states = {
        name: sum(state.session_bytes for state in file.signature.states) for name, file in files.items()
    }
    assert states == {"dtln": 64, "features": 20, "readers": 48, "twice": 40}
    for name in ("features", "readers"):
        model = load(files[name], Settings.load(models=folder, proof="full", max_sessions=20), Device())
        model.runner.stop()
        assert model.restrictions == ()
        assert model.engine.pool.slot_bytes == states[name]


def test_a_version_may_be_a_pipeline(tmp_path: Path) -> None:
    two_readers(tmp_path / "net" / "3")
    (tmp_path / "net" / "3" / "readers.toml").rename(tmp_path / "net" / "3" / "model.toml")
    (file,) = discover(tmp_path)
    assert (file.name, file.version, file.path.name) == ("net", "3", "model.toml")


def test_weights_in_files_of_their_own(tmp_path: Path) -> None:
    two_readers(tmp_path)
    model = onnx.load(tmp_path / "left.onnx")
    (weights,) = model.graph.initializer
    weights.raw_data = numpy_helper.to_array(weights).tobytes()
    weights.ClearField("float_data")
    onnx.save(
        model, tmp_path / "left.onnx", save_as_external_data=True, location="left.bin", size_threshold=0
    )
    (file,) = discover(tmp_path)
    assert tmp_path / "left.bin" in file.watched
    (held,) = (each for each in file.load().graph.initializer if each.name == "left.w")
    np.testing.assert_array_equal(numpy_helper.to_array(held), [1, 2, 3, 4])


def test_a_changed_stage_is_noticed(
    tmp_path: Path,
    start_server: Callable[..., ServerProcess],
    eventually: Callable[[Callable[[], bool]], bool],
    frontends: int,
) -> None:
    toml = SIDE + STAGES.replace("a.onnx", "in/a.onnx")
    write(tmp_path, {"in/a": parsed(PLAIN), "b": parsed(PLAIN)}, toml)
    server = start_server(tmp_path, "--model-control", "poll", "--model-poll-s", "0.1")
    x = np.array([[0.1, -0.2, 0.3]], np.float32)

    def replace(model: onnx.ModelProto) -> None:
        onnx.save(model, tmp_path / ".coming")
        (tmp_path / ".coming").rename(tmp_path / "in" / "a.onnx")

    with connect(server.target) as client:

        def answers(expected: np.ndarray) -> Callable[[], bool]:
            return lambda: bool(np.allclose(client.predict("pipe", x), np.tanh(expected), atol=1e-6))

        assert answers(np.tanh(x))()
        replace(parsed(PLAIN.replace("Tanh(x)", "Neg(x)")))
        assert eventually(answers(-x))
        replace(parsed(PLAIN.replace("3", "4")))
        assert eventually(lambda: any(e["event"] == "model not loaded" for e in server.log))
        assert answers(-x)()
        replace(parsed(PLAIN.replace("Tanh(x)", "Abs(x)")))
        assert eventually(answers(np.abs(x)))


def test_what_a_stage_takes_from_the_step_before_of_another_is_a_state(tmp_path: Path) -> None:
    files = {
        "a": parsed(WEIGHED.replace("W", "1, 2, 3, 4")),
        "b": parsed("(float[b,4] x) => (float[b,4] y) { y = Neg(x) }"),
    }
    feedback = STAGES + '[[states]]\ninput = "a.h"\noutput = "b.y"\n'
    model = open_model(write(tmp_path, files, SIDE + feedback), "pipe")
    assert [(state.input, state.output) for state in model.signature.states] == [("a.h", "b.y")]


def test_a_stage_with_functions_of_its_own_is_merged(tmp_path: Path) -> None:
    called = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[n,3] x) => (float[n,3] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }"""
    toml = write(tmp_path, {"a": parser.parse_model(called), "b": parser.parse_model(called)}, SIDE + STAGES)
    merged = open_model(toml, "pipe").load()
    session = ort.InferenceSession(merged.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(3, dtype=np.float32)[None]
    np.testing.assert_array_equal(session.run(["b.y"], {"a.x": x})[0], 4 * x)


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "foreign-models.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"### Pipelines of several files.*?```toml\n(.*?)```", page, re.DOTALL)
    files = {"denoiser/model_1": parsed(FIRST), "denoiser/model_2": parsed(SECOND)}
    write(tmp_path, files, toml, "denoiser")
    (file,) = discover(tmp_path)
    assert file.name == "denoiser"
    assert len(file.signature.states) == 2


def test_the_states_of_files_with_cards_need_not_be_said(
    tmp_path: Path, models_dir: Path, modules: dict[str, torch.nn.Module]
) -> None:
    toml = """
        layout = "batch_time"
        inputs = ["x"]
        outputs = ["deep.y"]
        lengths = "lengths"
        [[stages]]
        file = "tcn.onnx"
        wires = { x = "x", lengths = "lengths" }
        [[stages]]
        file = "widen.onnx"
        wires = { x = "tcn.y" }
        [[stages]]
        file = "deep.onnx"
        wires = { x = "widen.y", lengths = "lengths" }
        """
    widen = """(float[b,time,2] x) => (float[b,time,3] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}> {
            first = Slice(x, zero, one, two)  y = Concat<axis = 2>(x, first)
        }"""
    path = write(tmp_path, {"widen": parsed(widen)}, toml)
    for name in ("tcn", "deep"):
        shutil.copy(models_dir / f"{name}.onnx", tmp_path)
    model = load(
        open_model(path, "pipe"), Settings.load(models=tmp_path, proof="full", max_sessions=20), Device()
    )
    model.runner.stop()
    assert model.restrictions == ()
    cards = {name: open_model(models_dir / f"{name}.onnx", name) for name in ("tcn", "deep")}
    assert [each.input for each in model.file.signature.states] == [
        f"{name}.{state.input}" for name, file in cards.items() for state in file.signature.states
    ]
    x = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        between = modules["tcn"](x)
        between = between[0] if isinstance(between, tuple) else between
        expected = modules["deep"](torch.cat([between, between[..., :1]], 2))[0][0].numpy()
    got, engine = [], model.engine
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        staged = engine.stage(1, end - begin)
        staged.values[0][:1, : end - begin] = x[:, begin:end]
        staged.read[:1] = engine.pool.first_slot if begin else 0
        staged.write[:1, 0] = engine.pool.first_slot
        staged.lengths[:1] = end - begin
        engine.run(staged)
        got.append(np.copy(staged.values[1][0, : end - begin]))
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-4, atol=1e-5)
