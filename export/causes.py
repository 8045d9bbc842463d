"""Why a module's steps do not add up to its whole sequence: layers that look ahead or keep nothing between calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .calling import Calling, parameters
from .examples import Examples
from .purity import unchanged
from .tensors import Array, as_tensor

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
_NORMS = (nn.InstanceNorm1d, nn.GroupNorm, nn.BatchNorm1d)


@dataclass
class _Use:
    """How a layer was called: the shapes of its input and the rest of its arguments."""

    shapes: list[tuple[int, ...]]
    without_state: bool = False


def causes(calling: Calling, examples: Examples, initial: Callable[[int], list[torch.Tensor]]) -> list[str]:
    """A line for each layer that is to blame, and the lines of code to write for it.

    A layer counts only if it runs along time: if the axis that it works on gets longer with more timesteps (or
    with more rows, where a module takes one for the other). So a bidirectional layer over frequencies is accepted.
    """
    runs = [(2, 5), (2, 6), (3, 5)] if calling.order != "step" else [(2, 1), (3, 1)]
    uses, kept = [], set[str]()
    for batch, time in runs:
        use, changed = _watched(calling, examples.draw(np.random.default_rng(0), batch, time), initial(batch))
        uses.append(use)
        kept.update(changed)
    told = (
        [
            f"{type(calling.module).__name__} keeps {', '.join(map(repr, sorted(kept)))} on itself between calls: take "
            "it as an argument and return it"
        ]
        if kept
        else []
    )
    layers = dict(calling.module.named_modules())
    mute: list[tuple[str, nn.Module]] = []
    ahead: bool | None = None
    for name, layer in layers.items():
        seen = [use.get(name) for use in uses]
        first = seen[0]
        if first is None or None in seen:
            continue
        axes = [
            axis
            for axis in _axes(layer, first.shapes[0])
            if len({use.shapes[0][axis] for use in seen if use}) > 1
        ]
        looped = isinstance(layer, nn.RNNCellBase) and len({len(use.shapes) for use in seen if use}) > 1
        if not axes and not looped:
            continue
        kind = type(layer).__name__.removeprefix("Parametrized")
        what = f"{kind} {name!r}" if name else kind
        if getattr(layer, "bidirectional", False):
            told.append(
                f"{what} is bidirectional: it sees the timesteps to come. Train it with bidirectional=False"
            )
        elif (isinstance(layer, nn.RNNBase) and first.without_state) or (looped and not calling.states):
            mute.append((name, layer))
        elif isinstance(layer, _CONVOLUTIONS):
            if ahead is None:
                ahead = _looks_ahead(calling, examples, initial)
            told += _convolution(name, what, layer, axes, ahead=ahead, stateless=not calling.states)
        elif isinstance(layer, nn.MultiheadAttention):
            told.append(
                f"{what} sees the whole sequence: keep the last N keys and values as a state, and attend to those"
            )
        elif isinstance(layer, (*_POOLS, *_NORMS)):
            told.append(f"{what} joins timesteps: keep what it needs of those before as a state")
    if mute and not kept:
        told.append(_keeps_nothing(calling, mute))
    return told


def _axes(layer: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """The axes of its input that a layer works along."""
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
        return [1 if layer.batch_first and len(shape) == 3 else 0]
    if isinstance(layer, _CONVOLUTIONS):
        return list(range(len(shape) - len(layer.kernel_size), len(shape)))
    if isinstance(layer, _POOLS):
        return [len(shape) - 1]
    if isinstance(layer, nn.BatchNorm1d) and layer.running_mean is not None:
        return []
    if isinstance(layer, _NORMS):
        return list(range(2, len(shape)))
    return []


def _watched(
    calling: Calling, inputs: Sequence[Array], states: Sequence[torch.Tensor]
) -> tuple[dict[str, _Use], list[str]]:
    """Run once and note how each layer is called, and what the module keeps on itself."""
    uses: dict[str, _Use] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, args: Any, kwargs: Any) -> None:
            values = [*args, *kwargs.values()]
            if not values or not isinstance(values[0], torch.Tensor):
                return
            use = uses.setdefault(name, _Use([]))
            use.shapes.append(tuple(values[0].shape))
            use.without_state = use.without_state or all(value is None for value in values[1:])

        return note

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in calling.module.named_modules()
    ]
    try:
        with torch.no_grad(), unchanged(calling.module) as changed:
            calling.raw([calling.own(as_tensor(x)) for x in inputs], states)
    except Exception:  # the calls before the error have been noted
        return uses, []
    finally:
        for handle in handles:
            handle.remove()
    return uses, changed


def _looks_ahead(calling: Calling, examples: Examples, initial: Callable[[int], list[torch.Tensor]]) -> bool:
    """Whether another last timestep changes outputs before it."""
    if calling.order == "step":
        return False
    inputs = examples.draw(np.random.default_rng(0), 2, 6)
    others = examples.draw(np.random.default_rng(1), 2, 6)
    changed = [np.concatenate([x[:, :-1], y[:, -1:]], axis=1) for x, y in zip(inputs, others, strict=True)]
    axis = 1 if calling.order == "batch_time" else 0
    with torch.no_grad(), unchanged(calling.module):
        before, after = (
            calling.outputs([calling.own(as_tensor(x)) for x in drawn], initial(2))[0]
            for drawn in (inputs, changed)
        )
    return any(
        not torch.equal(a.narrow(axis, 0, a.shape[axis] - 1), b.narrow(axis, 0, b.shape[axis] - 1))
        for a, b in zip(before, after, strict=True)
        if a.dim() > axis
    )


def _convolution(
    name: str, what: str, layer: Any, axes: list[int], *, ahead: bool, stateless: bool
) -> Iterator[str]:
    """What to say of a convolution along time, by its padding on that axis and what the module does with it."""
    axis = axes[-1] - (len(layer.kernel_size) + 2)
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    if reach == 0:
        return
    padding = layer.padding if isinstance(layer.padding, str) else layer.padding[axis]
    seen = reach - reach // 2 if padding == "same" else 0 if padding == "valid" else min(int(padding), reach)
    remedy = f" Give it padding=0 and take the last {reach} of its inputs as a state"
    if isinstance(layer, nn.Conv1d):
        shape = f"batch, {layer.in_channels}, {reach}"
        remedy += (
            f":\n\n    def initial_state(self, batch):\n        return (torch.zeros({shape}),)\n\n"
            f"    def forward(self, x, past):                  # past [{shape}]\n"
            "        seen = torch.cat([past, x.transpose(1, 2)], 2)\n"
            f"        y = self.{name}(seen).transpose(1, 2)\n"
            f"        return y, seen[:, :, -{reach}:]"
        )
    if ahead and seen:
        steps = "timestep" if seen == 1 else "timesteps"
        yield f"{what} has padding={padding!r} on both sides: it sees {seen} {steps} to come.{remedy}"
    elif stateless:
        yield f"{what} keeps no history between calls.{remedy}"


def _keeps_nothing(calling: Calling, mute: list[tuple[str, nn.Module]]) -> str:
    """Recurrent layers that begin anew at each call, and the lines that mend it."""
    told, lines = [], []
    states = ["hidden" if len(mute) == 1 else f"hidden{index}" for index in range(len(mute))]
    for state, (name, layer) in zip(states, mute, strict=True):
        own = "(h, c) and return them" if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else "h and return it"
        told.append(f"{type(layer).__name__} {name!r} keeps no state between calls: take {own}")
        gives = f"y, {state}" if isinstance(layer, nn.RNNBase) else state
        lines.append(f"        {gives} = self.{name}(..., {state})")
    forward = f"    def forward(self, {_with_states(calling, states)}):"
    return "\n".join([*told, "", forward, *lines, f"        return y, {', '.join(states)}"])


def _with_states(calling: Calling, states: Sequence[str]) -> str:
    """The parameters of `forward` and these, None if they are not given."""
    present = [p.replace(annotation=p.empty) for p in parameters(calling.module) if p.name not in states]
    after = [p for p in present if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    more = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in states]
    return str(inspect.Signature([*(p for p in present if p not in after), *more, *after]))[1:-1]


def float64_cast(module: nn.Module, given: Mapping[str, torch.Tensor]) -> str | None:
    """What to cast if some tensors are float64; None if none is.

    Args:
        given: inputs and states by name, as the module takes them.
    """
    weights = dict([*module.named_parameters(), *module.named_buffers()])
    for name, tensor in weights.items():
        if tensor.dtype is torch.float64:
            return f"{name} is float64: cast the module with `.float()` where it is made"
    for name, tensor in given.items():
        if tensor.dtype is torch.float64:
            return f"{name} is float64: cast it with `.float()` where it is made"
    return None
