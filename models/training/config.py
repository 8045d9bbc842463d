"""The settings of one training run: everything that its result depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamcell.models.checks import choose
from streamcell.models.data.registry import DataOptions, check_options
from streamcell.models.errors import ConfigError

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """One run. With `minutes` unset the same configuration gives the same weights on the same machine.

    Attributes:
        model: settings of `build` but for the sizes of input and output, which the data gives.
        out: the run folder.
        dataset: "chorales", "harmony", "vowels", "digits", "g2p" or "csv".
        data: the CSV file; for chorales a file of the standard JSON layout instead of music21's corpus.
        data_folder: where parsed corpora are cached.
        targets: CSV columns to forecast; () for all.
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
        stress: whether phonemes carry their stress; g2p only.
        reverse: whether a word's letters go in last letter first; g2p only.
        seed: of weights, shuffling, transposition and dropout.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; 0: as many as torch takes by itself. Small models gain nothing beyond two.
    """

    model: Mapping[str, Any]
    out: Path
    dataset: str = "chorales"
    data: Path | None = None
    data_folder: Path = Path("data")
    targets: tuple[str, ...] = ()
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
    stress: bool = False
    reverse: bool = False
    seed: int = 1
    device: str = "cpu"
    threads: int = 0

    def check(self) -> None:
        """Raise ConfigError for a setting out of range, naming it."""
        check_options(self.dataset, self.data_options)
        choose("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("patience", "transpose", "weight_decay", "seed", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0; got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be in [0, 1); got {self.warmup}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be above 0; got {self.minutes}")
        self.torch_device()

    @property
    def data_options(self) -> DataOptions:
        """The settings that say which data to read."""
        return DataOptions(self.data, self.data_folder, self.targets, self.stress, self.reverse)

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
                f"there is no device {self.device}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
            )
        return device

    def to_json(self) -> dict[str, Any]:
        """Every setting as a JSON value; the model's settings are in the model's own configuration."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settings["model"] = dict(self.model)
        settings["targets"] = list(self.targets)
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
        if "targets" in given:
            given["targets"] = tuple(given["targets"])
        return cls(**given)
