"""A file's own text in what the user is told: cut, and nothing in it that moves a terminal's cursor."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_CHARACTERS = 120
_NAMES = 40


def shown(cell: str) -> str:
    """A cell, quoted as Python quotes it; the beginning of a long one."""
    text = repr(cell.strip()[: _CHARACTERS + 1])
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def listed(names: Collection[str]) -> str:
    """Names of columns, the first ones of many; one that cannot be printed is quoted."""
    told = [name if name.isprintable() else repr(name) for name in islice(names, _NAMES)]
    more = len(names) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")
