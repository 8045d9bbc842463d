"""How much of a resumable session survives what, by name."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from streamcell.client.errors import InvalidInput
from streamcell.proto import pb

Durability: TypeAlias = Literal["none", "process", "store-async", "store-sync"]
_WIRE: dict[str, pb.Durability] = {
    "none": pb.DURABILITY_NONE,
    "process": pb.DURABILITY_PROCESS,
    "store-async": pb.DURABILITY_STORE_ASYNC,
    "store-sync": pb.DURABILITY_STORE_SYNC,
}
_NAMES: dict[int, Durability] = dict(zip(_WIRE.values(), get_args(Durability), strict=True))


def durability_asked(name: str | None) -> pb.Durability:
    """The wire's value for a name; unspecified for None.

    Raises:
        InvalidInput: WRONG_DURABILITY.
    """
    try:
        return pb.DURABILITY_UNSPECIFIED if name is None else _WIRE[name]
    except KeyError:
        raise InvalidInput(
            f"durability: expected 'none', 'process', 'store-async' or 'store-sync', got {name!r}",
            reason="WRONG_DURABILITY",
        ) from None


def durability_name(value: int) -> Durability | None:
    """The name of the wire's value; None if it has none."""
    return _NAMES.get(value)
