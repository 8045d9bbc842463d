"""`train`: from a configuration to a run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import RunError
from streamcell.models.files import write_whole

from . import run_folder as runs
from .baselines import ForecastReport, forecast_report
from .config import TrainConfig
from .evaluation import score
from .fan import forecast_plot
from .losses import LOSS_NAMES
from .measures import MEASURES
from .plot import loss_plot
from .progress import Progress, Report
from .run_folder import Progressed, Row
from .setup import load_data, make_model
from .trainer import Trainer

# Settings that a resumed run may change: where and how long it trains, not what.
MAY_DIFFER = frozenset({"out", "device", "data_folder"})


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        folder: the run folder.
        test_loss, valid_loss: of the weights kept, per timestep, over whole sequences.
        epochs: that were run; best_epoch: the one whose weights were kept, counted from 1.
        stopped: "epochs", "minutes" or "patience".
        elapsed_s: seconds of training and validation, over all sittings.
        test_accuracy, valid_accuracy: of the weights kept; None if there are no classes.
        measured: what the data set measures beside the loss, on its test part.
        forecast: of a forecast, its errors in raw units beside the baselines'.
    """

    folder: Path
    test_loss: float
    valid_loss: float
    epochs: int
    best_epoch: int
    stopped: str
    elapsed_s: float
    test_accuracy: float | None = None
    valid_accuracy: float | None = None
    measured: dict[str, float] = field(default_factory=dict)
    forecast: ForecastReport | None = None


def train(
    config: TrainConfig, *, progress: Progress | None = None, resume: bool = False, overwrite: bool = False
) -> TrainResult:
    """Train, and leave a run folder: the weights of the best epoch, configuration, metrics, plot.

    After every epoch the folder holds all that a resumed run needs, so an interrupt (KeyboardInterrupt passes
    through) or a kill costs at most the epoch it fell in. torch's random state and threads are left as they were.

    Args:
        progress: gets a report of every epoch.
        resume: continue the interrupted run in `config.out`.
        overwrite: replace the run in `config.out`.

    Raises:
        ConfigError: the configuration is not sound.
        DataError: the data cannot be read.
        RunError: the folder holds a run and neither flag is set; or there is nothing to resume; or it was
            started with other settings.
        DivergedError: the gradient is not finite any more.
    """
    config.check()
    progressed, tensors = _begin(config, resume=resume, overwrite=overwrite)
    data = load_data(config, progress)
    if progress is not None and data.notes:
        progress.noted(data.notes)
    device = config.torch_device()
    with _threads(config.threads), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Run(config, data, progressed, tensors, progress).finish()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(
    config: TrainConfig, *, resume: bool, overwrite: bool
) -> tuple[Progressed, dict[str, torch.Tensor] | None]:
    if resume:
        tensors, progressed, begun = runs.load_resume(config.out)
        # A setting that came later had its default.
        before, now = TrainConfig.from_json(begun).to_json(), config.to_json()
        if changed := [n for n in now if n not in MAY_DIFFER and before[n] != now[n]]:
            told = "; ".join(f"{n} was {before[n]!r}, is {now[n]!r}" for n in changed)
            raise RunError(f"{config.out} was started with other settings: {told}")
        return progressed, tensors
    held = [name for name in (runs.WEIGHTS, runs.RESUME) if (config.out / name).exists()]
    if held and not overwrite:
        raise RunError(f"{config.out} already holds a run: resume it, overwrite it or choose another folder")
    for name in held:
        (config.out / name).unlink()
    return Progressed(), None


def _notes(data: SequenceData) -> dict[str, Any]:
    return {"notes": list(data.notes)} if data.notes else {}


class _Run:
    """The loop over epochs, with its bookkeeping."""

    def __init__(
        self,
        config: TrainConfig,
        data: SequenceData,
        progressed: Progressed,
        tensors: dict[str, torch.Tensor] | None,
        progress: Progress | None,
    ) -> None:
        self.config = config
        self.data = data
        self.progressed = progressed
        self.progress = progress
        self.model = make_model(config, data)
        self.trainer = Trainer(config, data, self.model, self._fraction)
        if tensors is not None:
            self.trainer.restore(tensors)
        # A resumed run counts as if it had not been interrupted.
        self._started = time.monotonic() - progressed.elapsed_s
        self._document: dict[str, Any] = {
            "model": self.model.config,
            "training": {**config.to_json(), "loss": LOSS_NAMES[data.distribution]},
            "data": {"name": data.name, "splits": data.sizes, **data.about, **_notes(data)},
        }

    def finish(self) -> TrainResult:
        runs.save_config(self.config.out, self._document)
        if not self.progressed.rows:
            self._checkpoint()
        while (stopped := self._stopped()) is None:
            self._epoch()
        return self._result(stopped)

    def _epoch(self) -> None:
        rows, best = self.progressed.rows, self.progressed.best_epoch
        done = self.trainer.epoch(len(rows))
        valid = score(self.model, self.data, "valid")
        elapsed_s = time.monotonic() - self._started
        row = Row(
            epoch=len(rows) + 1,
            train_loss=done.train_loss,
            valid_loss=valid.loss,
            grad_norm=done.grad_norm,
            learning_rate=done.learning_rate,
            elapsed_s=elapsed_s,
            valid_accuracy=valid.accuracy,
        )
        if self._better(row, rows[best - 1] if best else None):
            best = row.epoch
            runs.save_weights(self.config.out, self.model.state_dict())
        self.progressed = Progressed((*rows, row), best, elapsed_s)
        self._checkpoint()
        if self.progress is not None:
            fraction = self._fraction(row.epoch, 0.0)
            self.progress.epoch(Report(row, self.progressed.best_loss, fraction))

    def _better(self, row: Row, held: Row | None) -> bool:
        """Whether the weights of `row`'s epoch replace those of `held`'s."""
        if held is None or self.data.judged_by == "loss":
            return row.valid_loss < (math.inf if held is None else held.valid_loss)
        return (row.valid_accuracy or 0.0) > (held.valid_accuracy or 0.0)

    def _checkpoint(self) -> None:
        runs.save_resume(self.config.out, self.trainer.tensors(), self.progressed, self.config.to_json())
        runs.save_metrics(self.config.out, self.progressed.rows)

    def _fraction(self, epochs_done: int, share: float) -> float:
        if self.config.minutes is None:
            return (epochs_done + share) / self.config.epochs
        return min((time.monotonic() - self._started) / (60 * self.config.minutes), 1.0)

    def _stopped(self) -> str | None:
        done, patience = len(self.progressed.rows), self.config.patience
        if done and patience and done - self.progressed.best_epoch >= patience:
            return "patience"
        if self.config.minutes is not None:
            return "minutes" if done and self._fraction(done, 0.0) >= 1 else None
        return "epochs" if done >= self.config.epochs else None

    def _result(self, stopped: str) -> TrainResult:
        folder, rows = self.config.out, self.progressed.rows
        model, _ = runs.load_run(folder)
        test = score(model.to(self.config.torch_device()), self.data, "test")
        result = TrainResult(
            folder=folder,
            test_loss=test.loss,
            valid_loss=self.progressed.best_loss,
            epochs=len(rows),
            best_epoch=self.progressed.best_epoch,
            stopped=stopped,
            elapsed_s=self.progressed.elapsed_s,
            test_accuracy=test.accuracy,
            valid_accuracy=rows[self.progressed.best_epoch - 1].valid_accuracy,
            measured=MEASURES[self.data.measure](model, self.data, "test") if self.data.measure else {},
            forecast=self._forecast(model),
        )
        told = {
            name: value
            for name, value in asdict(replace(result, folder=Path())).items()
            if name not in ("folder", "measured", "forecast") and value is not None
        }
        told |= {f"test_{name}": value for name, value in result.measured.items()}
        told |= {} if result.forecast is None else {"forecast": result.forecast.to_json()}
        self._document["training"]["result"] = told
        runs.save_config(folder, self._document)
        title = f"{model.kind} on {self.data.name}: test {result.test_loss:.3f}"
        write_whole(
            folder / runs.PLOT,
            loss_plot(rows, result.best_epoch, title=title, clip_norm=self.config.clip_norm),
        )
        if result.forecast is not None:
            write_whole(folder / runs.FORECAST, forecast_plot(model, self.data, result.forecast))
        (folder / runs.RESUME).unlink()
        return result

    def _forecast(self, model: SequenceModel) -> ForecastReport | None:
        if not self.data.targets:
            return None
        base = model.config.get("forecast", {})
        return forecast_report(
            model,
            self.data,
            base.get("base", "value") + "+log" * base.get("log", False),
            base.get("season") or self.config.season or self.data.season,
        )
