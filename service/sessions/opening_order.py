"""Numbered items in order. Removing one, or starting a page at one, needs no walk through the others."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

_FEW = 64  # gaps that are never worth closing


class OpeningOrder(Generic[_Item]):
    """A list of items by ascending numbers. A removed item leaves a gap; once most are gaps, they are closed.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._items: list[_Item | None] = []  # None: a gap; never the last
        self._gaps = 0

    def add(self, number: int, item: _Item) -> None:
        """Append an item, whose number is higher than all before."""
        self._numbers.append(number)
        self._items.append(item)

    def remove(self, number: int) -> bool:
        """Remove the item of that number, if there is one; True if none is left."""
        at = bisect_left(self._numbers, number)
        if at == len(self._numbers) or self._numbers[at] != number or self._items[at] is None:
            return not self._items
        self._items[at] = None
        self._gaps += 1
        while self._items and self._items[-1] is None:
            self._items.pop()
            self._numbers.pop()
            self._gaps -= 1
        if self._gaps > _FEW and 2 * self._gaps > len(self._items):
            kept = [at for at, item in enumerate(self._items) if item is not None]
            self._numbers = [self._numbers[at] for at in kept]
            self._items = [self._items[at] for at in kept]
            self._gaps = 0
        return not self._items  # the last one is no gap

    def after(self, number: int, most: int) -> tuple[list[_Item], int, bool]:
        """The items among the next `most` places behind `number`, the last place's number, and whether more follow."""
        begin = bisect_right(self._numbers, number)
        end = min(begin + most, len(self._numbers))
        items = [item for item in self._items[begin:end] if item is not None]
        return items, self._numbers[end - 1] if end > begin else number, end < len(self._numbers)

    def __iter__(self) -> Iterator[_Item]:
        return iter([item for item in self._items if item is not None])

    def __len__(self) -> int:
        return len(self._items) - self._gaps
