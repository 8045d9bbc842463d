"""Models in int8 on the CPU: one arithmetic for all runs, chosen by measurement, and only if it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from structlog.testing import capture_logs

from streamcell.card.graphs import int8_form
from streamcell.card.graphs.int8_weights import Stored
from streamcell.card.graphs.node_builder import NodeBuilder
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.engine.pool import StatePool
from streamcell.service.lifecycle import arithmetic
from streamcell.service.lifecycle.inspection import inspect_model
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

KINDS: dict[str, dict[str, Any]] = {
    "voices": {
        "kind": "lstm",
        "output_size": 88,
        "hidden_size": 40,
        "voices": 3,
        "distribution": "bernoulli_logits",
    },
    "lstm": {"hidden_size": 40, "num_layers": 2},
    "gru": {"hidden_size": 33},
    "rnn": {"hidden_size": 24},
}
INPUTS, OUTPUTS = 5, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file in int8 of each kind, and one in float32."""
    folder = tmp_path_factory.mktemp("int8")
    made = {}
    for kind, config in KINDS.items():
        torch.manual_seed(1)
        model = build({"kind": kind, "input_size": INPUTS, "output_size": OUTPUTS, **config}).eval()
        export_model(model, folder / f"{kind}.onnx", precision="int8")
        made[kind] = folder / f"{kind}.onnx"
    export_model(model, folder / "plain.onnx")
    return {**made, "plain": folder / "plain.onnx"}


def loaded(path: Path, **settings: Any) -> LoadedModel:
    model = load(open_model(path, path.stem), Settings.load(models=path.parent, **settings), Device())
    model.runner.stop()
    return model


def measured(monkeypatch: pytest.MonkeyPatch, *factors: float) -> None:
    """Have int8 be measured as this many times as fast as float32, size by size."""
    left = iter(factors)
    monkeypatch.setattr(arithmetic, "timed", lambda runs, budget_s: [[9.0, next(left)], [1.0, 9.0]])


def test_the_faster_one_runs_at_all_sizes(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the other would be faster: a session's answers do not depend on its company."""
    measured(monkeypatch, 3.0, 0.9, 1.5)
    model = loaded(files["lstm"])
    assert model.engine.arithmetic == "int8"
    assert model.arithmetic == (
        "int8: int8 is 3.00 times as fast with 1 session, 0.90 times as fast with 8 sessions, "
        "1.50 times as fast with 64 sessions"
    )


def test_float32_stays_unless_int8_is_clearly_faster(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 1.1, 1.0, 1.0)
    model = loaded(files["gru"])
    assert (model.engine.arithmetic, model.arithmetic[:7]) == ("float32", "float32")


@pytest.mark.parametrize("asked", ["float32", "int8"])
def test_the_settings_may_decide(files: dict[str, Path], asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "timed", None)  # nothing is measured
    model = loaded(files["rnn"], arithmetic=asked)
    assert (model.engine.arithmetic, model.arithmetic) == (asked, f"{asked}: as --arithmetic says")


def test_a_file_in_float32_has_no_choice(files: dict[str, Path]) -> None:
    model = loaded(files["plain"], arithmetic="int8")
    assert (model.engine.arithmetic, model.arithmetic) == ("float32", "float32")


def test_a_card_computes_in_float32(files: dict[str, Path]) -> None:
    settings = Settings.load(models=files["lstm"].parent, arithmetic="int8")
    options = EngineOptions(device=Device("cuda"), max_sessions=1, max_batch=1, max_chunk=1)
    graph = open_model(files["lstm"], "lstm").load()
    choice = arithmetic.choose(None, options, graph, settings, None)  # type: ignore[arg-type]
    assert str(choice) == "float32: on cuda:0"


def test_trials_leave_the_journal_alone(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring and proving use pools of their own, in memory; the journal is made once, for the engine that serves."""
    measured(monkeypatch, 2.0, 2.0, 2.0)
    made = []
    new = StatePool.__init__

    def counted(self: StatePool, *args: Any, **options: Any) -> None:
        new(self, *args, **options)
        made.append(self.journal is not None)

    monkeypatch.setattr(StatePool, "__init__", counted)
    model = loaded(files["gru"], durability="process", journal_dir=tmp_path / "journals")
    assert model.engine.arithmetic == "int8"
    assert made == [False, False, False, True]
    assert model.journal is not None
    model.journal.end()


def test_inspect_tells(files: dict[str, Path]) -> None:
    found = inspect_model(files["lstm"], Settings.load(models=files["lstm"].parent, arithmetic="int8"))
    assert found.arithmetic == "int8: as --arithmetic says"
    assert "neighbours in chunks" in found.proof
    assert not found.restrictions


def outputs(engine: Engine, rows: Sequence[int], parts: Sequence[int], x: np.ndarray) -> np.ndarray:
    """y [rows, time, outputs] of sessions in slots of their own, from the initial state."""
    slots = engine.pool.first_slot + np.arange(len(rows))
    made, begin = [], 0
    for part in parts:
        staged = engine.stage(len(rows), part)
        staged.values[0][: len(rows), :part] = x[rows, begin : begin + part]
        staged.read[: len(rows)] = slots if begin else 0
        staged.write[: len(rows), 0] = slots
        staged.lengths[: len(rows)] = part
        engine.pad(staged, len(rows))
        engine.run(staged)
        made.append(np.copy(staged.values[1][: len(rows), :part]))
        begin += part
    return np.concatenate(made, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_gets_the_same_bits_alone_and_among_64(files: dict[str, Path], kind: str) -> None:
    engine = loaded(files[kind], arithmetic="int8").engine
    x = np.random.default_rng(8).standard_normal((64, 6, INPUTS)).astype(np.float32)
    x[1::2] *= 100
    together = outputs(engine, range(64), [1] * 6, x)
    np.testing.assert_array_equal(outputs(engine, range(64), [4, 1, 1], x), together)
    for row in (0, 1, 63):
        np.testing.assert_array_equal(outputs(engine, [row], [6], x)[0], together[row])
    in_float32 = outputs(loaded(files[kind], arithmetic="float32").engine, range(64), [1] * 6, x)
    error = np.abs(in_float32[::2] - together[::2]).max()
    assert 0 < error < 0.05  # what docs/export.md promises of ordinary inputs


def one_scale_for_all(
    self: Any,
    write: NodeBuilder,
    x: str,
    name: str,
    weight: Stored,
    bias: str = "",
    *,
    part: str = "",
    into: Any = None,
) -> str:
    """The mutant: activations are quantised as ONNX Runtime's own tools do it."""
    steps = weight.rows()[0].T
    held, scale = write.name(f"{name}{part}.mutant"), write.name(f"{name}{part}.mutant_scale")
    size = np.float32(weight.scales.max())
    write.graph.initializer.extend(
        [numpy_helper.from_array(np.ascontiguousarray(steps), held), numpy_helper.from_array(size, scale)]
    )
    quantised = [write.name(f"{name}.mutant") for _ in range(3)]
    node = int8_form.helper.make_node("DynamicQuantizeLinear", [x], quantised)
    write.nodes.append(node)
    whole = write.add("MatMulInteger", quantised[0], held, quantised[2])
    wide = write.add(
        "Mul", write.add("Cast", whole, to=TensorProto.FLOAT), write.add("Mul", quantised[1], scale)
    )
    return write.add("Add", wide, bias, into=into) if bias else write.add("Identity", wide, into=into)


def test_one_scale_for_a_whole_batch_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_form._Rewrite, "_times", one_scale_for_all)
    with pytest.raises(ModelLoadError, match=r"int8 is not exact: with several .* leave --arithmetic out"):
        loaded(files["lstm"], arithmetic="int8")
    measured(monkeypatch, 9.0, 9.0, 9.0)
    with capture_logs() as logs:
        model = loaded(files["lstm"])
    assert model.engine.arithmetic == "float32"
    assert model.arithmetic.startswith("float32: int8 is not exact: with several")
    assert not model.restrictions
    assert [line["error"] for line in logs if line["event"] == "not in int8"]


def test_a_runtime_without_the_kernel_computes_in_float32(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_form, "DOMAIN", "no.such.domain")
    with capture_logs() as logs:
        model = loaded(files["lstm"])
    assert (model.engine.arithmetic, model.arithmetic) == ("float32", "float32: in int8 it fails")
    assert "no.such.domain" in next(line["error"] for line in logs if line["event"] == "not in int8")


def test_cells_that_are_not_measured_stay_written_out(files: dict[str, Path]) -> None:
    """Single steps have no Scan, whatever `--cell` says: both forms give the same bits."""
    for cell in ("auto", "operator", "decomposed"):
        model = loaded(files["gru"], arithmetic="int8", cell=cell)
        assert model.engine._programs.pick(1, 1).name == "decomposed"
        assert model.engine._programs.pick(1, 2).name == "operator"
