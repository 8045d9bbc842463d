"""The proof catches wrong graphs, and what it refuses is not saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.export import ExportError, ProofError, export_model, proof, recurrent, save
from streamcell.models import SequenceModel, build

MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"kind": "rnn", "nonlinearity": "relu"},
    "lstm": {"kind": "lstm", "candidate": "relu"},
    "gru": {"kind": "gru", "reset_after": True},
}


def make(name: str) -> SequenceModel:
    torch.manual_seed(5)
    model = build({"input_size": 3, "hidden_size": 8, "output_size": 2, "num_layers": 2, **MODELS[name]})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def without(attribute: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    """`recurrent.operator` that forgets one attribute."""
    right = recurrent.operator

    def operator(layer: Any) -> tuple[str, dict[str, Any]]:
        op, attributes = right(layer)
        del attributes[attribute]
        return op, attributes

    return operator


@pytest.mark.parametrize(
    ("name", "op", "order"),
    [("lstm", "LSTM", (0, 1, 2, 3)), ("lstm", "LSTM", (0, 3, 2, 1)), ("gru", "GRU", (0, 1, 2))],
)
def test_a_wrong_gate_order_is_caught_and_nothing_is_saved(
    name: str, op: str, order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recurrent.GATES, op, order)
    with pytest.raises(ProofError, match=r"sequence .*tolerance 1e-05"):
        export_model(make(name), tmp_path / "models" / "m.onnx")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "attribute"), [("rnn", "activations"), ("lstm", "activations"), ("gru", "linear_before_reset")]
)
def test_a_missing_attribute_is_caught(
    name: str, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "operator", without(attribute))
    with pytest.raises(ProofError):
        export_model(make(name), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_lengths_that_are_not_wired_are_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = recurrent.emit_layer

    def emit_layer(*args: Any, **kwargs: Any) -> Any:
        return right(*args, **{**kwargs, "lengths": ""})

    monkeypatch.setattr(recurrent, "emit_layer", emit_layer)
    with pytest.raises(ProofError, match="ragged"):
        export_model(make(name), tmp_path / "m.onnx")


def test_states_of_layers_that_are_swapped_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = recurrent.split_layers
    monkeypatch.setattr(recurrent, "split_layers", lambda *args: right(*args)[::-1])
    with pytest.raises(ProofError, match="steps"):
        export_model(make("gru"), tmp_path / "m.onnx")


def test_an_export_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(make("gru"), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    monkeypatch.setitem(recurrent.GATES, "GRU", (0, 1, 2))
    with pytest.raises(ProofError):
        export_model(make("gru"), tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_a_file_that_reads_back_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is cut short between writing and reading it back."""
    right = save._verify

    def verify(file: Path, *rest: Any) -> None:
        data = file.read_bytes()
        file.write_bytes(data.replace(b"layer0", b"layer9", 1))
        right(file, *rest)

    monkeypatch.setattr(save, "_verify", verify)
    with pytest.raises(ExportError, match="read back"):
        export_model(make("lstm"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(ExportError, match="cannot write to"):
        export_model(make("lstm"), tmp_path / "models" / "m.onnx")


def test_the_tolerance_decides(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="tolerance 1e-12"):
        export_model(make("lstm"), tmp_path / "m.onnx", tolerance=1e-12)
    assert export_model(make("lstm"), tmp_path / "m.onnx", tolerance=1e-4).proof["tolerance"] == 1e-4


def test_the_file_gets_the_usual_mode(tmp_path: Path) -> None:
    export_model(make("lstm"), tmp_path / "m.onnx")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "m.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_error_is_relative_for_large_values_and_absolute_for_small() -> None:
    assert proof.error(np.array([200.0, 100.0]), np.array([200.0, 101.0])) == 1 / 200
    assert proof.error(np.array([0.25]), np.array([0.0])) == 0.25
    assert proof.error(np.array([0.5, -0.25]), np.array([0.5, -0.5])) == 0.25
    assert proof.error(np.zeros(0), np.zeros(0)) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_pass(value: float) -> None:
    assert proof.error(np.array([value]), np.array([value])) == float("inf")


def test_chunks_cover_the_sequence() -> None:
    rng = np.random.default_rng(0)
    for time in range(1, 30):
        chunks = proof._chunks(rng, time)
        assert sum(chunks) == time
        assert min(chunks) >= 1
        assert len(chunks) >= min(2, time)
