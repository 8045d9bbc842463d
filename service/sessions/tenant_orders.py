"""The live sessions of each tenant in the order they were opened."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from .opening_order import OpeningOrder


class Listed(Protocol):
    """A live session, as far as the lists need it."""

    number: int

    @property
    def place(self) -> tuple[str, str]:
        """Whose it is, and its model's name."""


_Live = TypeVar("_Live", bound=Listed)


class TenantOrders(Generic[_Live]):
    """Each tenant's sessions, all of them and by model. Not thread-safe."""

    def __init__(self) -> None:
        self._orders: dict[tuple[str, str], OpeningOrder[_Live]] = {}

    def add(self, live: _Live) -> None:
        """List a session, opened after all that are listed."""
        tenant, model = live.place
        for key in ((tenant, ""), (tenant, model)):
            self._orders.setdefault(key, OpeningOrder()).add(live.number, live)

    def remove(self, live: _Live) -> None:
        """Take a session off the lists."""
        tenant, model = live.place
        for key in ((tenant, ""), (tenant, model)):
            if self._orders[key].remove(live.number):
                del self._orders[key]

    def counts(self) -> dict[str, int]:
        """How many sessions each tenant has."""
        return {tenant: len(order) for (tenant, model), order in self._orders.items() if not model}

    def of(self, tenant: str, model: str) -> OpeningOrder[_Live] | None:
        """The tenant's sessions on `model`, or on all models if that is empty; None if there are none."""
        return self._orders.get((tenant, model))
