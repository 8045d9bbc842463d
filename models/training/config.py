"""The settings of one training run: everything that its result depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamcell.models.checks import choose, share
from streamcell.models.data.registry import DataOptions, check_options
from streamcell.models.data.tables.options import FOUND, TableOptions
from streamcell.models.errors import ConfigError
from streamcell.models.layers.lags import BASES

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """One run. With `minutes` unset the same configuration gives the same weights on the same machine.

    Attributes:
        model: settings of `build` but for the sizes of input and output, which the data gives.
        out: the run folder.
        dataset: "chorales", "harmony", "vowels", "voice", "digits", "g2p" or "csv".
        data: the CSV file; for chorales a file of the standard JSON layout instead of music21's corpus.
        data_folder: where parsed corpora are cached.
        targets: CSV columns to forecast; () for all.
        table: how to read the CSV file.
        forecast: what a forecast of csv is added to, and what the model sees: one of `lags.BASES`, with "+log" behind
            it for logarithms; "auto": what forecasts the training part best by itself.
        season: steps of a season; 0: the time axis's.
        quantiles: to forecast instead of the value; () for the value.
        epochs: passes over the training part.
        minutes: stop after this long instead, and anneal the learning rate over it; not reproducible.
        batch_size: pieces (rows of a CSV series) that are trained on side by side.
        window: timesteps of truncated back-propagation; the state is carried from window to window.
        learning_rate: the highest of the schedule.
        schedule: "cosine" or "linear" to zero, or "constant".
        warmup: share of the run over which the learning rate rises from zero.
        weight_decay: AdamW's, on weight matrices only.
        clip_norm: bound on the global norm of the gradient.
        patience: epochs without a better validation loss after which to stop; 0: never.
        transpose: transpose each piece by up to this many semitones, drawn again in every epoch; piano data only.
        stretch: make each sequence longer or shorter by a factor of up to 1 + this, drawn again in every epoch;
            vowels only.
        noise: the deviation of the normal noise that is added to x, drawn again in every epoch, in the deviations
            by which the model standardises x; vowels and digits only.
        stress: whether phonemes carry their stress; g2p only.
        reverse: whether a word's letters go in last letter first; g2p only.
        seed: of weights, shuffling, augmentation and dropout.
        device: "cpu", "cuda" or "cuda:N".
        bfloat16: multiply in bfloat16 in training (torch's autocast); weights, sums and losses stay float32.
        threads: CPU threads of torch; 0: as many as torch takes by itself. Small models gain nothing beyond two.
    """

    model: Mapping[str, Any]
    out: Path
    dataset: str = "chorales"
    data: Path | None = None
    data_folder: Path = Path("data")
    targets: tuple[str, ...] = ()
    table: TableOptions = FOUND
    forecast: str = "value"
    season: int = 0
    quantiles: tuple[float, ...] = ()
    epochs: int = 60
    minutes: float | None = None
    batch_size: int = 16
    window: int = 64
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    patience: int = 0
    transpose: int = 0
    stretch: float = 0.0
    noise: float = 0.0
    stress: bool = False
    reverse: bool = False
    seed: int = 1
    device: str = "cpu"
    bfloat16: bool = False
    threads: int = 0

    def check(self) -> None:
        """Raise ConfigError for a setting out of range, naming it."""
        check_options(self.dataset, self.data_options)
        choose("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        augmented = ("transpose", "stretch", "noise")
        for name in (*augmented, "patience", "weight_decay", "seed", "threads", "season"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0; got {getattr(self, name)}")
        share("warmup", self.warmup)
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be above 0; got {self.minutes}")
        self._check_forecast()
        self.torch_device()

    def _check_forecast(self) -> None:
        if (self.forecast, self.season, self.quantiles) != ("value", 0, ()) and self.dataset != "csv":
            raise ConfigError(
                f"forecast, season and quantiles can only be given for csv; the data set is {self.dataset}"
            )
        base, plus, log = self.forecast.rpartition("+log")
        if self.forecast != "auto":
            choose("forecast", base if plus and not log else self.forecast, ("auto", *BASES))
        if any(not 0 < level < 1 for level in self.quantiles) or list(self.quantiles) != sorted(
            set(self.quantiles)
        ):
            raise ConfigError(f"quantiles must be increasing and between 0 and 1; got {list(self.quantiles)}")

    @property
    def data_options(self) -> DataOptions:
        """The settings that say which data to read."""
        return DataOptions(
            self.data,
            self.data_folder,
            self.targets,
            self.stress,
            self.reverse,
            # A stack gives back one letter a symbol.
            aligned=bool(self.model.get("stack")),
            table=self.table,
        )

    def torch_device(self) -> torch.device:
        """The device that `device` names.

        Raises:
            ConfigError: the name is unknown, or this torch or this machine has no such device.
        """
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device must be cpu, cuda or cuda:N; got {self.device!r}") from error
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device must be cpu, cuda or cuda:N; got {self.device!r}")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"there is no device {self.device}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
                "train on device cpu"
            )
        return device

    def to_json(self) -> dict[str, Any]:
        """Every setting as a JSON value; the model's settings are in the model's own configuration."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settings["model"] = dict(self.model)
        for name in ("targets", "quantiles"):
            settings[name] = list(settings[name])
        settings["table"] = self.table.to_json()
        for name in ("out", "data", "data_folder"):
            settings[name] = None if settings[name] is None else str(settings[name])
        return settings

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The settings that `to_json` wrote; keys of no setting are left out.

        Raises:
            TypeError: a setting without a default is missing.
        """
        given = {f.name: settings[f.name] for f in dataclasses.fields(cls) if f.name in settings}
        for name in ("out", "data", "data_folder"):
            if given.get(name) is not None:
                given[name] = Path(given[name])
        for name in ("targets", "quantiles"):
            if name in given:
                given[name] = tuple(given[name])
        if "table" in given:
            given["table"] = TableOptions.from_json(given["table"])
        return cls(**given)
