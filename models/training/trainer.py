"""One model under training: an optimiser, epochs of truncated back-propagation, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import ModelError

from .augmentation import Augmentation
from .batches import Batch, shuffled
from .config import TrainConfig
from .losses import masked_sum, step_losses

MOMENTS = ("exp_avg", "exp_avg_sq")


class DivergedError(ModelError):
    """The gradient is not finite."""


@dataclass(frozen=True)
class Epoch:
    """The result of one pass: mean loss per timestep, mean norm of the gradient before clipping, last rate."""

    train_loss: float
    grad_norm: float
    learning_rate: float


class Trainer:
    """Runs epochs. An epoch's randomness comes from the seed and its number alone, so a run can be resumed
    at any epoch and continue as if it had never stopped.

    Args:
        fraction: how much of the run is over, 0 to 1, given epochs done and the share done of this one.

    Raises:
        ConfigError: the sequences cannot be changed as `config` says.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: SequenceData,
        model: SequenceModel,
        fraction: Callable[[int, float], float],
    ) -> None:
        self.config = config
        self.data = data
        self.model = model
        self._fraction = fraction
        self._device = config.torch_device()
        self._parameters = dict(model.named_parameters())
        matrices = [p for p in self._parameters.values() if p.dim() > 1]
        vectors = [p for p in self._parameters.values() if p.dim() <= 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self._augmentation = Augmentation(config.transpose, config.stretch, config.noise)
        self._augmentation.check(data)
        std = data.output_standard
        self._std = None if std is None else torch.from_numpy(std.std).to(self._device)

    def epoch(self, index: int) -> Epoch:
        """One pass over the training part; `index` counts from 0.

        Raises:
            DivergedError: the gradient is not finite.
        """
        config = self.config
        rng = np.random.default_rng([config.seed, index])
        torch.manual_seed(int(rng.integers(2**62)))
        batches = shuffled(
            self.data,
            batch_size=config.batch_size,
            window=config.window,
            rng=rng,
            augmentation=self._augmentation,
        )
        self.model.train()
        total, timesteps, norms, rate = 0.0, 0, [], 0.0
        for number, batch in enumerate(batches):
            # The loss of a window is divided by the batch's mean window, so that every timestep weighs the same.
            windows = list(batch.to(self._device).windows(config.window))
            counts = [window.counted(self.data.distribution) for window in windows]
            mean_window = max(sum(counts), 1) / len(windows)
            timesteps += sum(counts)
            state: tuple[Tensor, ...] = ()
            for position, window in enumerate(windows):
                done = (number + position / len(windows)) / len(batches)
                rate = self._set_rate(self._fraction(index, done))
                loss, state = self._forward(window, state)
                # Without a target in the window there is nothing to learn from it but the state it leaves.
                if counts[position]:
                    norms.append(self._update(loss / mean_window, index))
                    total += float(loss.detach())
        return Epoch(total / timesteps, float(np.mean(norms)), rate)

    def _forward(self, window: Batch, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = window.x.shape[0]
        carried = tuple(tensor.narrow(self.model.state_axis, 0, rows).detach() for tensor in state)
        # Batch normalisation must not count padding; recurrent layers run faster without lengths, and a row's
        # state beyond its end is never used.
        lengths = window.lengths if self.model.trains_with_lengths else None
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.bfloat16):
            y, *after = self.model(window.x, *carried, lengths=lengths)
        losses = step_losses(y.float(), window.y, self.data.distribution, self._std, self.data.quantiles)
        return masked_sum(losses, window.lengths), tuple(each.float() for each in after)

    def _update(self, loss: Tensor, index: int) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm))
        if not math.isfinite(norm):
            raise DivergedError(
                f"the gradient is {norm} in epoch {index + 1}: lower the learning rate ({self.config.learning_rate})"
            )
        self._optimiser.step()
        return norm

    def _set_rate(self, fraction: float) -> float:
        rate = self.config.learning_rate * schedule(self.config.schedule, self.config.warmup, fraction)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        return rate

    def tensors(self) -> dict[str, Tensor]:
        """Weights and the optimiser's moments, by name: all that another trainer needs to continue from here."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self._parameters.items():
            for key in ("step", *MOMENTS):
                if parameter in self._optimiser.state:
                    tensors[f"{key}.{name}"] = self._optimiser.state[parameter][key]
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `tensors` returned."""
        prefix = "model."
        weights = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        self.model.load_state_dict(weights)
        for name, parameter in self._parameters.items():
            if f"step.{name}" in tensors:
                state = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
                self._optimiser.state[parameter] = {"step": tensors[f"step.{name}"].clone(), **state}


def schedule(name: str, warmup: float, fraction: float) -> float:
    """The learning rate as a share of the highest, when `fraction` (0 to 1) of the run is over."""
    if fraction < warmup:
        return max(fraction / warmup, 0.01)
    over = min((fraction - warmup) / (1 - warmup), 1.0)
    if name == "constant":
        return 1.0
    return 1.0 - over if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * over))
