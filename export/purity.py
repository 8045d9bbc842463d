"""Calls that leave a module as it was, and what a module has kept on itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def unchanged(module: nn.Module) -> Iterator[list[str]]:
    """Undo what the body assigns to attributes and buffers of the module and its parts.

    Yields:
        A list that holds afterwards the names of those that hold tensors and were assigned or written to.
    """
    # What TorchScript holds is not Python's to undo.
    parts = {
        name: part for name, part in module.named_modules() if not isinstance(part, torch.jit.ScriptModule)
    }
    before = {name: dict(vars(part)) for name, part in parts.items()}
    buffers = {name: dict(part._buffers) for name, part in parts.items()}
    marks = {name: buffer._version for name, buffer in module.named_buffers()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        changed += [
            name
            for name, buffer in module.named_buffers()
            if marks.get(name, buffer._version) != buffer._version
        ]
        for name, part in parts.items():
            now = [(key, value) for key, value in vars(part).items() if _holds_tensors(value)]
            changed += [_dotted(name, key) for key, value in now if before[name].get(key) is not value]
            changed += [
                _dotted(name, key)
                for key, buffer in part._buffers.items()
                if buffers[name].get(key) is not buffer
            ]
            vars(part).clear()
            vars(part).update(before[name])
            part._buffers.clear()
            part._buffers.update(buffers[name])


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, without what attributes remember of how they were computed, as weight_norm's weights do."""
    with unchanged(module):
        for part in module.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    vars(part)[name] = value.detach()
        return copy.deepcopy(module)


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)
