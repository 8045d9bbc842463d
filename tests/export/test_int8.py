"""Files in int8: proved in int8 too, with their worth on test data and their speed in the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from streamcell.card import read_card
from streamcell.card.graphs.int8_form import int8_form
from streamcell.cli.commands import export as command
from streamcell.export import ProofError, export_model, export_module, export_run, gains
from streamcell.export.reference import ModelReference
from streamcell.export.runner import Runner
from streamcell.models import SequenceModel, TrainConfig, build, load_data, score
from streamcell.models.training.run_folder import save_config, save_weights

KINDS: dict[str, dict[str, Any]] = {
    "rnn": {"hidden_size": 20},
    "lstm": {"hidden_size": 32},
    "gru": {"hidden_size": 40},
    "mlp": {"hidden_sizes": [40]},
    "tcn": {"channels": [8]},
}


def make(kind: str, **config: Any) -> SequenceModel:
    torch.manual_seed(2)
    return build({"kind": kind, "input_size": 12, "output_size": 3, **KINDS[kind], **config}).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_proved_in_int8_and_its_speed_is_in_the_card(kind: str, tmp_path: Path) -> None:
    card = export_model(make(kind), tmp_path / "m.onnx", precision="int8")
    found = card.proof["int8"]
    assert found["errors"].keys() == card.proof["errors"].keys()
    assert 1e-4 < found["max_error"] == max(found["errors"].values()) < 0.05
    assert found["times_as_fast"].keys() == {"1", "8", "64"}
    assert read_card(onnx.load(tmp_path / "m.onnx")) == card


def test_an_error_in_int8_over_the_tolerance_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant multiplies by weights of the wrong sign."""
    from streamcell.card.graphs import int8_form as module

    pack = module._Rewrite._pack
    monkeypatch.setattr(
        module._Rewrite,
        "_pack",
        lambda self, name, weight: pack(self, name, replace(weight, steps=-weight.steps)),
    )
    with pytest.raises(ProofError, match="ONNX Runtime in int8 and PyTorch differ"):
        export_model(make("gru"), tmp_path / "m.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


def test_features_of_different_size_are_scaled_before_they_share_a_scale(tmp_path: Path) -> None:
    """x in raw units: beside a feature ten thousand times as large, one that is not scaled first would be lost."""
    model = make("lstm", input_affine=True)
    assert model.input_affine is not None
    size = torch.tensor([1e4, 1.0] * 6)
    model.input_affine.standardise(torch.zeros(12), size)
    card = export_model(model, tmp_path / "m.onnx", precision="int8")
    assert card.proof["int8"]["max_error"] < 0.03


class Tagger(nn.Module):
    """A user's module: an embedding, PyTorch's own LSTM, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 24)
        self.rnn = nn.LSTM(24, 40, batch_first=True)
        self.head = nn.Linear(40, 7)

    def forward(self, tokens: Any, hidden: Any = None) -> Any:
        y, hidden = self.rnn(self.table(tokens), hidden)
        return self.head(y), hidden


def test_the_products_of_a_users_module_are_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tokens = torch.arange(64).reshape(4, 16) % 50
    card = export_module(Tagger().eval(), tmp_path / "m.onnx", example_x={"tokens": tokens}, precision="int8")
    assert 1e-4 < card.proof["int8"]["max_error"] < 0.05
    form = int8_form(onnx.load(tmp_path / "m.onnx"), None)
    assert form is not None
    ops = [node.op_type for node in form.graph.node]
    assert ops.count("MatMulNBits") == 3
    assert not {"LSTM", "Gemm", "MatMul", "Scan"} & set(ops)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    table = np.cumsum(rng.standard_normal((200, 3)), axis=0)
    text = "a,b,c\n" + "\n".join(",".join(f"{v:.4f}" for v in row) for row in table) + "\n"
    (tmp_path / "table.csv").write_text(text)
    folder = tmp_path / "run"
    folder.mkdir()
    model = make("gru", input_size=3)
    config = TrainConfig(
        {"kind": "gru", "hidden_size": 40}, out=folder, dataset="csv", data=tmp_path / "table.csv", epochs=1
    )
    save_config(folder, {"model": model.config, "training": config.to_json()})
    save_weights(folder, model.state_dict())
    return folder


def test_the_card_of_a_run_tells_what_int8_is_worth_on_its_test_data(
    run_folder: Path, tmp_path: Path
) -> None:
    card = export_run(run_folder, tmp_path / "m.onnx", precision="int8")
    test = card.proof["test"]
    data = load_data(TrainConfig.from_json(card.training["training"] | {"data": str(tmp_path / "table.csv")}))
    model = make("gru", input_size=3)
    assert test["float32"]["loss"] == pytest.approx(score(model, data, "test").loss, rel=1e-4)
    (series,) = data.test
    graph = onnx.load(tmp_path / "m.onnx")
    form = int8_form(graph, "lengths")
    assert form is not None
    x, first = series.x[None], ModelReference(model).initial(1)
    (got,), _ = Runner(form.SerializeToString(), card.signature)([x], first)
    (wanted,), _ = ModelReference(model)([x], first)
    assert test["largest_difference"] == pytest.approx(float(np.abs(got - wanted).max()), rel=1e-4)
    assert 0 < abs(test["int8"]["loss"] - test["float32"]["loss"]) < 0.05 * test["float32"]["loss"]


def test_a_run_without_its_data_says_so(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").unlink()
    card = export_run(run_folder, tmp_path / "m.onnx", precision="int8")
    assert "table.csv cannot be read" in card.proof["test"]["left_out"]
    assert "test" not in export_run(run_folder, tmp_path / "full.onnx").proof


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ({"1": 0.9, "8": 0.8, "64": 1.1}, "int8 gains nothing at this size"),
        ({"1": 2.1, "8": 1.8, "64": 1.5}, "int8: a step is this many times as fast"),
    ],
)
def test_the_export_says_whether_int8_gains(
    factors: dict[str, float], told: str, run_folder: Path, tmp_path: Path
) -> None:
    card = export_run(run_folder, tmp_path / "m.onnx", precision="int8")
    card.proof["int8"]["times_as_fast"] = factors
    lines = list(command._in_int8(card))
    assert any(line.startswith(told) and f"{factors['64']} with 64" in line for line in lines)
    assert any(line.startswith("test data, float32 → int8: loss") for line in lines)
    assert gains(factors) == (told[4] == ":")
