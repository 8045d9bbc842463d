"""Parses the usual requests of the Open Inference Protocol cheaply: a cache by their constant bytes.

The messages of a sequence differ only in id and payload. All other bytes are the same. The cache maps those bytes to
a `ParsedRequest`, so a message like an earlier one is not parsed again. A message that differs anywhere else is parsed.
`tests/service/protocols/oip/test_plans.py` compares `RequestCache.find` with protobuf's parser.
"""

from __future__ import annotations

import threading

from .requests import ParsedRequest

# The message's tags: (field << 3) | length-delimited.
_NAME, _VERSION, _ID, _RAW = 0x0A, 0x12, 0x1A, 0x3A  # fields 1, 2, 3 and 7
_REST = (0x22, 0x2A, 0x32)  # parameters, inputs, outputs: fields 4, 5 and 6
_MOST_BYTES = 64 * 2**20
_PLAN_BYTES = 2048  # memory of a plan without its key, its sequence included
_LONGEST_REST = 4096
_TAILS = 4  # payload sizes tried for each message size

# Parsed requests with the same model and version, by three keys: the number of bytes behind the id, the number of
# payload bytes among them, and the bytes between id and payload. These end with the payload's declared size.
_Plans = dict[bytes, ParsedRequest]
_Family = dict[int, tuple[tuple[int, _Plans], ...]]


class RequestCache:
    """Parsed requests by the bytes of the messages that they were made from. Thread-safe.

    A message is model name, version, id, the rest and the payload, in this order, as protobuf's libraries write it;
    others, and those with more inputs than one, are parsed each time.

    Attributes:
        bytes: the most that the cache may take. Over a bound the cache is emptied.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._families: dict[bytes, _Family] = {}
        self._lock = threading.Lock()

    def find(self, data: bytes) -> tuple[ParsedRequest, bytes, bytes] | None:
        """(plan, id, payload) of a message like an earlier one; None for other messages."""
        try:
            at = 2 + data[1]
            if data[at] == _VERSION:
                at += 2 + data[at + 1]
            family = self._families.get(data[:at])
            if family is None:
                return None
            id_ = b""
            if data[at] == _ID:
                size = data[at + 1]
                begin = at + 2
                at = begin + size
                id_ = data[begin:at]
                if size >= 0x80 or not id_.isascii():  # a longer varint, or text that the parser must decode
                    return None
        except IndexError:
            return None
        # A message whose size differs from a cached one has no known size, or differs from it in
        # the bytes before the payload: a payload of a wrong length is never accepted.
        for tail, plans in family.get(len(data) - at, ()):
            plan = plans.get(data[at:-tail])
            if plan is not None:
                return plan, id_, data[-tail:]
        return None

    def keep(self, data: bytes, plan: ParsedRequest) -> None:
        """Cache the plan of `data`, if its fields are in the usual order and more messages like it are likely."""
        if plan.flags.start or plan.flags.end or (places := _laid_out(data)) is None:
            return
        front, begin, payload = places
        if payload - begin > _LONGEST_REST:
            return
        size, tail, rest = len(data) - begin, len(data) - payload, data[begin:payload]
        with self._lock:
            taken = _PLAN_BYTES + front + len(rest)
            if self.bytes + taken > _MOST_BYTES:
                self._families, self.bytes = {}, 0
            self.bytes += taken
            family = self._families.setdefault(data[:front], {})
            known = family.get(size, ())
            plans = dict(known).get(tail)
            if plans is None:
                plans = {}
                family[size] = ((tail, plans), *known[: _TAILS - 1])
            plans[rest] = plan


def _laid_out(data: bytes) -> tuple[int, int, int] | None:
    """Where the fields behind model and version begin, those behind the id, and the payload, which is the rest.

    None unless the fields are in the order of their numbers, name, version, id and payload at most once, with the
    payload last and whole. So whoever has equal bytes between id and payload, and as many of payload, has the same
    message but for these two.
    """
    at = front = begin = before = 0
    while at < len(data):
        tag = data[at]
        length = _length(data, at + 1)
        if length is None or tag < before or (tag == before and tag not in _REST):
            return None
        content, size = length
        end = content + size
        if tag in (_NAME, _VERSION, _ID):
            if size >= 0x80 or content != at + 2:
                return None
            front, begin = (end, end) if tag != _ID else (front, end)
        elif tag == _RAW:
            return (front, begin, content) if front and size and end == len(data) else None
        elif tag not in _REST:
            return None
        at, before = end, tag
    return None


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """(start of the content, its size) of the field whose length is at `at`; None if it is incomplete."""
    size = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            return None
        byte = data[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (at, size) if at + size <= len(data) else None
    return None
