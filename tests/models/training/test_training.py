"""Training: what a run leaves behind, that it learns, and that an interrupted run ends as if it had not been."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from streamcell.models import (
    ConfigError,
    DivergedError,
    Report,
    RunError,
    TrainConfig,
    evaluate,
    load_data,
    load_run,
    presets,
    train,
)
from streamcell.models.data.digits import load_digits
from streamcell.models.training.evaluation import Score


@pytest.fixture
def table(tmp_path: Path) -> Path:
    t = np.arange(1500)
    values = np.stack([1e3 + 50 * np.sin(t / 5), np.cos(t / 5), t % 7], axis=1)
    path = tmp_path / "wave.csv"
    np.savetxt(path, values, delimiter=",", header="wave,phase,week", comments="")
    return path


class Interrupt:
    """Presses Ctrl-C when an epoch has been reported."""

    def __init__(self, after: int) -> None:
        self.after = after

    def parsed(self, done: int, total: int) -> None: ...

    def noted(self, notes: Sequence[str]) -> None: ...

    def epoch(self, report: Report) -> None:
        if report.row.epoch == self.after:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "elapsed_s"} for row in rows]


def test_a_run_leaves_its_folder_and_learns(config: TrainConfig) -> None:
    config = dataclasses.replace(config, epochs=15)
    result = train(config)
    folder = config.out
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "loss.png", "metrics.csv", "weights.safetensors")
    ]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    model, document = load_run(folder)
    assert not model.training
    assert document["format"] == "streamcell.run/1"
    assert document["name"] == "run"
    assert document["model"] == model.config
    assert document["model"]["distribution"] == "bernoulli_logits"
    assert document["training"]["seed"] == config.seed
    assert document["training"]["result"]["test_loss"] == result.test_loss
    assert document["data"]["splits"]["train"]["sequences"] == 24
    losses = [float(row["valid_loss"]) for row in metrics(folder)]
    assert len(losses) == result.epochs == 15
    assert min(losses) == result.valid_loss == losses[result.best_epoch - 1]
    assert result.stopped == "epochs"
    assert result.valid_loss < 0.3 * losses[0]
    # The weights kept are those of the best epoch, and the losses told are theirs.
    data = load_data(config)
    assert evaluate(model, data, "valid") == pytest.approx(result.valid_loss, rel=1e-6)
    assert evaluate(model, data, "test") == pytest.approx(result.test_loss, rel=1e-6)


def test_the_same_configuration_gives_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(config)
    train(dataclasses.replace(config, out=tmp_path / "again"))
    torch.testing.assert_close(weights(config.out), weights(tmp_path / "again"), rtol=0, atol=0)
    train(dataclasses.replace(config, out=tmp_path / "other", seed=2))
    assert not torch.equal(weights(config.out)["head.weight"], weights(tmp_path / "other")["head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_in_bfloat16_a_run_learns_the_same_and_its_weights_stay_float32(
    config: TrainConfig, tmp_path: Path
) -> None:
    exact = train(config)
    fast = train(dataclasses.replace(config, out=tmp_path / "fast", bfloat16=True))
    assert fast.valid_loss == pytest.approx(exact.valid_loss, rel=0.05)
    assert fast.valid_loss != exact.valid_loss
    assert {value.dtype for value in weights(tmp_path / "fast").values()} == {torch.float32}
    assert load_run(tmp_path / "fast")[1]["training"]["bfloat16"] is True


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    config: TrainConfig, tmp_path: Path, after: int
) -> None:
    whole = train(config)
    broken = dataclasses.replace(config, out=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(broken, progress=Interrupt(after))
    assert len(metrics(broken.out)) == after
    resumed = train(broken, resume=True)
    torch.testing.assert_close(weights(broken.out), weights(config.out), rtol=0, atol=0)
    assert metrics(broken.out) == metrics(config.out)
    assert (resumed.test_loss, resumed.best_epoch) == (whole.test_loss, whole.best_epoch)


def test_an_interrupted_run_can_be_used_already(config: TrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(2))
    model, document = load_run(config.out)
    assert model.kind == "lstm"
    assert "result" not in document["training"]


def test_a_run_is_neither_lost_nor_mixed_up(config: TrainConfig) -> None:
    with pytest.raises(RunError, match="holds nothing to resume"):
        train(config, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(1))
    with pytest.raises(RunError, match="already holds a run"):
        train(config)
    with pytest.raises(RunError, match=r"started with other settings: learning_rate was 0.02, is 0.5"):
        train(dataclasses.replace(config, learning_rate=0.5), resume=True)
    assert train(config, overwrite=True).epochs == 4
    with pytest.raises(RunError, match=r"nothing to resume \(that run is finished\)"):
        train(config, resume=True)


def test_a_run_of_before_a_setting_existed_had_its_default(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_json = TrainConfig.to_json
    with monkeypatch.context() as patched:
        patched.setattr(
            TrainConfig, "to_json", lambda self: {k: v for k, v in to_json(self).items() if k != "noise"}
        )
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=Interrupt(1))
    with pytest.raises(RunError, match=r"started with other settings: noise was 0.0, is 0.5$"):
        train(dataclasses.replace(config, noise=0.5), resume=True)
    assert train(config, resume=True).epochs == 4


def test_a_damaged_resume_point_is_refused(config: TrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(1))
    (config.out / "resume.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="is damaged"):
        train(config, resume=True)


def test_training_stops_when_it_no_longer_gets_better(config: TrainConfig) -> None:
    # So small a rate that nothing changes in float32: no epoch is better than the first.
    result = train(dataclasses.replace(config, epochs=50, learning_rate=1e-12, patience=3))
    assert (result.stopped, result.epochs, result.best_epoch) == ("patience", 4, 1)


def test_a_time_budget_ends_the_run_and_anneals_over_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that goes on by 50 ms whenever it is looked at, whatever else the machine has to do.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) * 0.05)
    monkeypatch.setattr("streamcell.models.training.train.time", clock)
    result = train(dataclasses.replace(config, minutes=0.1))
    assert result.stopped == "minutes"
    assert result.elapsed_s >= 5.9
    rates = [float(row["learning_rate"]) for row in metrics(config.out)]
    assert rates[-1] < 0.2 * max(rates)


def test_a_loss_that_explodes_is_an_error_not_a_model(config: TrainConfig) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(dataclasses.replace(config, learning_rate=1e30, warmup=0.0, epochs=20))


@pytest.mark.parametrize("kind", ["mlp", "rnn", "gru", "lstm", "cnn", "tcn"])
def test_every_kind_forecasts_a_table_in_raw_units(kind: str, table: Path, tmp_path: Path) -> None:
    settings = presets.model("csv", kind, hidden=16, dropout=0.0)
    config = presets.config(
        "csv",
        model=settings,
        out=tmp_path / "run",
        data=table,
        targets=("wave",),
        epochs=60,
        window=16,
        threads=1,
    )
    result = train(config)
    model, document = load_run(config.out)
    assert document["data"]["targets"] == ["wave"]
    assert result.forecast is not None
    assert result.forecast.ratio("last value") < 0.7
    assert document["training"]["result"]["forecast"] == json.loads(json.dumps(result.forecast.to_json()))
    (piece,) = load_data(config).test
    with torch.no_grad():
        y = model(torch.from_numpy(piece.x)[None])[0][0].numpy()
    # Raw units: the wave runs from 950 to 1050.
    assert np.nanmean(np.abs(y - piece.y)) < 8


@pytest.mark.parametrize(("judged_by", "kept"), [("loss", 1), ("accuracy", 2)])
def test_weights_are_kept_by_what_the_data_is_judged_by(
    judged_by: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([Score(0.5, 0.6), Score(0.7, 0.8), Score(0.6, 0.7), Score(0.1, 1.0)])
    monkeypatch.setattr("streamcell.models.training.train.score", lambda *given: next(scores))
    data = dataclasses.replace(load_digits(), judged_by=judged_by)
    monkeypatch.setattr("streamcell.models.training.train.load_data", lambda *given: data)
    config = presets.config("digits", out=tmp_path / "run", epochs=3)
    assert train(config).best_epoch == kept


def test_settings_out_of_range_are_refused_by_name(config: TrainConfig) -> None:
    for change, message in (
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"patience": -1}, "patience must not be negative"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"stretch": -0.1}, "stretch must not be negative; got -0.1"),
        ({"noise": -1.0}, "noise must not be negative"),
        ({"schedule": "steps"}, "schedule must be one of cosine, linear, constant"),
        ({"dataset": "jazz"}, "dataset must be one of chorales, harmony, vowels, voice, digits, g2p, csv"),
        ({"dataset": "csv", "data": None}, "needs a file"),
        ({"dataset": "vowels"}, "a data file can only be given for chorales or csv; the data set is vowels"),
        ({"targets": ("a",)}, "target columns can only be given for csv; the data set is chorales"),
        ({"stress": True}, "stress can only be given for g2p"),
        ({"reverse": True}, "reverse can only be given for g2p"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N; got 'tpu'"),
        ({"device": "cuda:99"}, "there is no device cuda:99"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(config, **change))
    assert not config.out.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(RunError, match=r"is not of format streamcell\.run/1"):
        load_run(tmp_path)
    train(dataclasses.replace(config, epochs=1))
    (config.out / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="has no weights"):
        load_run(config.out)
    safetensors.torch.save_file({"w": torch.zeros(1)}, config.out / "weights.safetensors")
    with pytest.raises(RunError, match="does not fit the model"):
        load_run(config.out)
