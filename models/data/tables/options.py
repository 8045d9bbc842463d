"""The options of a CSV file; what the user does not say is found in the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamcell.models.checks import choose
from streamcell.models.errors import ConfigError

CATEGORIES = ("refuse", "one-hot")
GAPS = ("refuse", "forward", "linear", "mask")
_NAMES = ("time", "columns", "drop", "missing")
_SEPARATORS = {"tab": "\t", "\\t": "\t", "space": " "}


@dataclass(frozen=True)
class TableOptions:
    """How to read a CSV file. An empty text, an empty tuple and None say: find it.

    Attributes:
        separator: one character between cells; " " for any run of spaces. "tab" and "space" are names of theirs.
        decimal: "." or ",".
        thousands: the character between groups of three digits.
        quote: the character around cells that hold separators.
        encoding: a name that Python knows, "utf-8", "cp1252", "utf-16".
        comment: what a line begins with that is no row.
        header: whether the first line names the columns.
        missing: further cells that mean "no value", such as "-999".
        time: the columns of the time axis; ("none",): the rows in their order, without one.
        day_first: whether 1/2/2024 is the first of February.
        columns: those to read; drop: those not to read.
        categories: what to do with a column of words: "refuse" or "one-hot".
        gaps: what to do with a missing cell or row: "refuse", "forward" (the last value), "linear" (between the
            neighbours) or "mask" (the last value, and a further input that is 1 if the value is missing).
    """

    separator: str = ""
    decimal: str = ""
    thousands: str = ""
    quote: str = '"'
    encoding: str = ""
    comment: str = ""
    header: bool | None = None
    missing: tuple[str, ...] = ()
    time: tuple[str, ...] = ()
    day_first: bool = False
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    categories: str = "refuse"
    gaps: str = "refuse"

    def check(self) -> None:
        """Raise ConfigError for an option out of range, naming it."""
        choose("categories", self.categories, CATEGORIES)
        choose("gaps", self.gaps, GAPS)
        if self.decimal:
            choose("decimal", self.decimal, (".", ","))
        for name, value in (("separator", self.delimiter), ("quote", self.quote)):
            if len(value) > 1 or (name == "quote" and not value):
                raise ConfigError(f"{name} must be one character; got {value!r}")
        if self.thousands and (len(self.thousands) > 1 or self.thousands.isdigit()):
            raise ConfigError(f"thousands must be one character that is no digit; got {self.thousands!r}")
        if self.decimal and self.decimal == self.thousands:
            raise ConfigError(f"decimal and thousands are both {self.decimal!r}")
        if both := sorted(set(self.columns) & set(self.drop)):
            raise ConfigError(f"columns and drop both name {', '.join(both)}")

    @property
    def delimiter(self) -> str:
        """The separator itself."""
        return _SEPARATORS.get(self.separator, self.separator)

    def to_json(self) -> dict[str, Any]:
        """Every option as a JSON value."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> TableOptions:
        """The options that `to_json` wrote; keys of no option are left out."""
        given: dict[str, Any] = {
            f.name: options[f.name] for f in dataclasses.fields(cls) if f.name in options
        }
        given |= {name: tuple(given[name]) for name in _NAMES if name in given}
        return cls(**given)


# Everything is found in the file.
FOUND = TableOptions()
