"""Letters to phonemes: training from the command line on a part of the dictionary, and the export of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.export import export_run
from streamcell.models import ConfigError, Seq2Seq, TrainConfig, load_run, train
from streamcell.models.data import registry
from streamcell.models.data.g2p import Dictionary, Symbols
from streamcell.models.training import presets
from streamcell.models.training.g2p_evaluation import error_rates, pronounce


@pytest.mark.parametrize("fixture", ["trained", "aligned"])
def test_training_writes_a_run_folder_with_error_rates(
    fixture: str, few: Dictionary, request: pytest.FixtureRequest
) -> None:
    model, document = load_run(request.getfixturevalue(fixture))
    assert isinstance(model, Seq2Seq)
    symbols = Symbols.of(document["data"])
    assert symbols.reverse
    result = document["training"]["result"]
    errors = error_rates(model, symbols, few.part("test"))
    assert result["test_phoneme_error_rate"] == pytest.approx(errors.per)
    assert result["test_word_error_rate"] == pytest.approx(errors.wer)
    train_errors = error_rates(model, symbols, few.part("train"))
    # Chance is over 80 %: the words it was trained on it has largely learned.
    assert train_errors.per < 0.4
    assert pronounce(model, symbols, ["cat"]) == pronounce(model, symbols, ["CAT"])


def test_a_run_is_exported_with_its_table_and_its_generation(trained: Path, tmp_path: Path) -> None:
    card = export_run(trained, tmp_path / "g2p.onnx")
    assert card.generation is not None
    assert (card.generation.offset, card.generation.start, card.generation.stop) == (29, 29, 0)
    assert Symbols.of(card.training["data"]) == Symbols(reverse=True)


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ({"kind": "lstm", "hidden_size": 4}, "g2p", "a model of kind lstm takes vectors; g2p gives tokens"),
        ({"kind": "seq2seq", "hidden_size": 4}, "csv", "seq2seq takes tokens, which cannot be scaled"),
    ],
)
def test_a_model_that_the_data_does_not_fit_is_refused(
    model: dict[str, object],
    dataset: str,
    message: str,
    few: Dictionary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "load_dictionary", lambda stress: few)
    table = tmp_path / "t.csv"
    np.savetxt(
        table, np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments=""
    )
    data = table if dataset == "csv" else None
    with pytest.raises(ConfigError, match=message):
        train(TrainConfig(model=model, out=tmp_path / "run", dataset=dataset, data=data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["g2p", "--data", "x.csv"], "a data file can only be given for chorales or csv"),
        (["chorales", "--reverse"], "reverse can only be given for g2p"),
        (["g2p", "--set", "cell=rnn"], "cell must be one of lstm, gru"),
        (["g2p", "--set", "stack=4", "--no-reverse"], "a stack gives back first what was read last"),
        (["chorales", "--set", "stack=4"], "a stack can only be given for g2p; the data set is chorales"),
    ],
)
def test_bad_settings_are_told(
    arguments: list[str], message: str, few: Dictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load_dictionary", lambda stress: few)
    done = CliRunner().invoke(app, ["train", *arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_the_large_recipe_is_the_command_that_the_page_gives() -> None:
    model = presets.model("g2p", hidden=512, layers=2, dropout=0.5) | {"embedding_size": 128}
    command = presets.config("g2p", model=model, epochs=40, learning_rate=0.002)
    assert command == presets.G2P_LARGE
