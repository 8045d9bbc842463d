"""Calls that leave a module as it was, and what a module has kept on itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .nested import items


@contextmanager
def unchanged(module: nn.Module) -> Iterator[list[str]]:
    """Undo what the body assigns to attributes and buffers of the module and its parts.

    Yields:
        A list that holds afterwards the names of those that hold tensors and were assigned or written to.
    """
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    buffers = {name: dict(part._buffers) for name, part in module.named_modules()}
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
        for name, part in module.named_modules():
            for key, value in vars(part).items():
                if _holds_tensors(value) and before[name].get(key) is not value:
                    changed.append(f"{name}.{key}" if name else key)
            for key, buffer in part._buffers.items():
                if buffers[name].get(key) is not buffer:
                    changed.append(f"{name}.{key}" if name else key)
            vars(part).clear()
            vars(part).update(before[name])
            part._buffers.clear()
            part._buffers.update(buffers[name])


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    parts = items(value) if isinstance(value, (tuple, list)) else None
    return parts is not None and any(map(_holds_tensors, parts.values()))
