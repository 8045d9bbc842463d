"""A counter whose name does not end in `_total`, like Triton's."""

from __future__ import annotations

from prometheus_client.core import Metric


class _Counter(str):
    """The type "counter" to which prometheus_client appends no suffix: it compares the type with "counter"."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return False


class PlainCounterFamily(Metric):
    """A family of counters without suffix."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text, "counter")
        self.type = _Counter("counter")
