"""Nested tuples, lists, dicts and dataclasses of tensors: taken apart, put together, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch

from .errors import ExportError

Kind = Literal["tensor", "constant", "sequence", "named", "mapping", "dataclass"]


@dataclass(frozen=True)
class Nest:
    """The form of a nested value, without its tensors.

    Attributes:
        kind: "tensor" is a leaf; "constant" anything else without parts (None, a number), kept in `made_by`.
        made_by: the class that puts the parts together, or the constant itself.
        keys: each part's key, field name or place.
        parts: the form of each part.
    """

    kind: Kind
    made_by: Any = None
    keys: tuple[Any, ...] = ()
    parts: tuple[Nest, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Nest:
        """The form of `value`.

        Raises:
            ExportError: it holds an object that is no tensor, number, tuple, list, dict or dataclass.
        """
        if isinstance(value, torch.Tensor):
            return cls("tensor")
        if value is None or isinstance(value, (bool, int, float, str)):
            return cls("constant", value)
        found = items(value)
        if found is None:
            raise ExportError(
                f"got a {type(value).__name__}; expected tensors, or tuples, lists, dicts and dataclasses of them"
            )
        return cls(_kind(value), type(value), tuple(found), tuple(map(cls.of, found.values())))

    def take(self, value: Any) -> list[torch.Tensor]:
        """The tensors of `value`, which must have this form; tuples count as lists, and dicts are matched by keys.

        Raises:
            ValueError: it has another form.
        """
        if self.kind == "tensor":
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"a {type(value).__name__} where a tensor was")
            return [value]
        if self.kind == "constant":
            if isinstance(value, torch.Tensor) or items(value) is not None:
                raise ValueError(f"a {type(value).__name__} where {self.made_by!r} was")
            return []
        found = items(value)
        if found is None or set(found) != set(self.keys):
            raise ValueError(f"{_told(value)} where {len(self.keys)} parts were")
        return [
            leaf for key, part in zip(self.keys, self.parts, strict=True) for leaf in part.take(found[key])
        ]

    def build(self, leaves: Iterator[torch.Tensor]) -> Any:
        """A value of this form, its tensors drawn from `leaves`."""
        if self.kind == "tensor":
            return next(leaves)
        if self.kind == "constant":
            return self.made_by
        built = [part.build(leaves) for part in self.parts]
        if self.kind == "sequence":
            return built if issubclass(self.made_by, list) else tuple(built)
        if self.kind == "named":
            return self.made_by(*built)
        named = dict(zip(self.keys, built, strict=True))
        return self.made_by(**named) if self.kind == "dataclass" else named

    def paths(self) -> list[tuple[str, ...]]:
        """The way to each tensor, in the order of `take`: keys, field names and places."""
        if self.kind == "tensor":
            return [()]
        return [
            (str(key), *rest)
            for key, part in zip(self.keys, self.parts, strict=True)
            for rest in part.paths()
        ]

    def __len__(self) -> int:
        return 1 if self.kind == "tensor" else sum(map(len, self.parts))


def items(value: Any) -> dict[Any, Any] | None:
    """The parts of a tuple, list, dict or dataclass by place, key or field; None of anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    return None


def is_nothing(value: Any) -> bool:
    """Whether `value` is None, or nested parts of None only."""
    found = items(value)
    return value is None or (found is not None and all(map(is_nothing, found.values())))


def has_names(value: Any) -> bool:
    """Whether the parts of `value` have names: a dict, a dataclass or a named tuple."""
    return isinstance(value, Mapping) or hasattr(value, "_fields") or is_dataclass(value)


def name_of(stem: str, path: Sequence[str]) -> str:
    """A tensor's name: the parameter's, with the way to it behind: `hidden`, `hidden0`, `cache_keys`."""
    for part in path:
        stem += part if part.isdigit() else f"_{part}"
    return stem


def _kind(value: Any) -> Kind:
    if isinstance(value, Mapping):
        return "mapping"
    if is_dataclass(value):
        return "dataclass"
    return "named" if hasattr(value, "_fields") else "sequence"


def _told(value: Any) -> str:
    found = items(value)
    return f"a {type(value).__name__}" + ("" if found is None else f" of {len(found)}")
