"""The base of a forecast: earlier values of its targets, in a state that a session carries.

With z the targets (or their logarithms) and z_{t−k} = z_t for steps before the first, a model sees a form of z that is
easier to learn, and its output is added to a base:

| base | the model sees | its output is added to |
|---|---|---|
| change | z_t | z_t |
| difference | z_t − z_{t−1} | z_t |
| season m | z_t − z_{t−m} | z_{t+1−m} |
| difference+season | (z_t − z_{t−1}) − (z_{t−m} − z_{t−m−1}) | z_t + (z_{t+1−m} − z_{t−m}) |

The last is Box & Jenkins's (1970) airline model's; with a season the model also sees the season's next move,
z_{t+1−m} − z_{t−m}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamcell.models.checks import choose, positive
from streamcell.models.errors import ConfigError

BASES = ("value", "change", "difference", "season", "difference+season")


@dataclass(frozen=True)
class Base:
    """The settings of `Lags`.

    Attributes:
        columns: features of a raw timestep.
        targets: which of them are forecast, in the order of the outputs.
        base: one of `BASES`; "value": the output is z itself.
        season: m, in steps; 0 if there is none.
        log: whether z is the logarithm of the targets.
        levels: outputs of each target: 1, or the number of quantiles.
    """

    columns: int
    targets: tuple[int, ...]
    base: str = "value"
    season: int = 0
    log: bool = False
    levels: int = 1

    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
        choose("base", self.base, BASES)
        if not self.targets or not all(0 <= target < self.columns for target in self.targets):
            raise ConfigError(
                f"targets must be columns from 0 to {self.columns - 1}; got {list(self.targets)}"
            )
        positive("levels", self.levels)
        if (self.season > 1) != self.seasonal:
            raise ConfigError(f"a base of {self.base} and a season of {self.season} steps do not go together")

    @property
    def seasonal(self) -> bool:
        """Whether the base uses the season."""
        return "season" in self.base

    @property
    def differs(self) -> bool:
        """Whether the model sees differences of successive steps."""
        return "difference" in self.base

    @property
    def history(self) -> int:
        """Timesteps before x that are carried."""
        return self.season + int(self.differs)

    @property
    def features(self) -> int:
        """Features that the model sees."""
        return self.columns + (len(self.targets) if self.seasonal else 0)

    @property
    def others(self) -> tuple[int, ...]:
        """The columns that are no targets."""
        return tuple(column for column in range(self.columns) if column not in self.targets)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Base:
        """What `to_json` gave.

        Raises:
            ConfigError: a setting is missing, unknown or out of range.
        """
        try:
            base = cls(**{**settings, "targets": tuple(settings["targets"])})
            base.check()
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a forecast has other settings: {error}") from error
        return base


class Lags(nn.Module):
    """Raw timesteps → what a model sees and what its output is added to. No weight is trained.

    Attributes:
        settings: see `Base`.
        floor: float32[targets], below which a value counts as this before its logarithm is taken.
    """

    floor: Tensor

    def __init__(self, settings: Base) -> None:
        super().__init__()
        settings.check()
        self.settings = settings
        self.register_buffer("floor", torch.ones(len(settings.targets)))

    @property
    def state_shape(self) -> tuple[int, int]:
        """[history, targets + 1]: z of the steps before x, the oldest first, and 1 if there was such a step."""
        return self.settings.history, len(self.settings.targets) + 1

    def transformed(self, values: Tensor) -> Tensor:
        """Targets float[..., targets] → z."""
        return torch.log(torch.maximum(values, self.floor)) if self.settings.log else values

    def forward(self, x: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Run over whole sequences.

        Args:
            x: float32[batch, time, columns], raw.
            recent: float32[batch, history, targets + 1], see `state_shape`; None without a history.

        Returns:
            float32[batch, time, features] for the model, the base float32[batch, time, targets] of each step, and
            float32[batch, history + time, targets + 1], of which the last `history` steps are the next `recent`.
        """
        own = self.settings
        z = self.transformed(x[:, :, list(own.targets)])
        whole = torch.cat([z, torch.ones_like(z[:, :, :1])], dim=2)
        if recent is not None:
            whole = torch.cat([recent, whole], dim=1)
        time, history, count = x.shape[1], own.history, len(own.targets)

        def lag(steps: int) -> tuple[Tensor, Tensor]:
            part = whole[:, history - steps : history - steps + time]
            return part[:, :, :count], part[:, :, count:]

        seen, base = z, z
        extra: list[Tensor] = []
        if own.differs:
            before, there = lag(1)
            seen = there * (z - before)
        if own.seasonal:
            (ahead, ahead_there), (season, there) = lag(own.season - 1), lag(own.season)
            move = there * (ahead - season)
            extra = [move]
            if own.differs:
                earlier, all_there = lag(own.season + 1)
                seen = seen - all_there * (season - earlier)
                base = z + move
            else:
                seen = there * (z - season)
                base = z + ahead_there * (ahead - z)
        others = [x[:, :, list(own.others)]] if own.others else []
        return torch.cat([*others, seen, *extra], dim=2), base, whole

    def restore(self, y: Tensor, base: Tensor) -> Tensor:
        """A model's output float32[batch, time, targets·levels] in raw units; levels of a target are neighbours."""
        if self.settings.base != "value":
            y = y + base.repeat_interleave(self.settings.levels, dim=2)
        return torch.exp(y) if self.settings.log else y

    def extra_repr(self) -> str:
        return f"{self.settings}"
