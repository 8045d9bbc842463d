"""Parses the usual requests of the Open Inference Protocol cheaply: a cache by their constant bytes.

The messages of a sequence differ only in id and payload. All other bytes are the same. The cache maps those bytes to
a `ParsedRequest`, so a message like an earlier one is not parsed again. Messages of another sequence differ in the
sequence's id as well. So the cache also knows each form of message without that id: a START, a step and an END of any
sequence are read by the first three that were parsed. A message that differs anywhere else is parsed.
`tests/service/protocols/oip/test_plans.py` compares `RequestCache.find` with protobuf's parser.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, TypeVar

from .requests import Flags, ParsedRequest

# The message's tags: (field << 3) | length-delimited.
_NAME, _VERSION, _ID, _PARAMETER, _RAW = 0x0A, 0x12, 0x1A, 0x22, 0x3A  # fields 1, 2, 3, 4 and 7
_REST = (_PARAMETER, 0x2A, 0x32)  # parameters, inputs, outputs: fields 4, 5 and 6
_SEQUENCE = b"sequence_id"
_KEY = b"\x0a\x0bsequence_id"  # a parameter's name: its field 1
_VALUE, _INT, _TEXT = 0x12, 0x10, 0x1A  # a parameter's field 2; InferParameter's int64_param and string_param
_MOST_BYTES = 64 * 2**20
_PLAN_BYTES = 2048  # memory of a plan without its key, its sequence included
_LONGEST_REST = 4096
_TAILS = 4  # payload sizes tried for each message size
_FORMS = 8  # places of payload and sequence's id tried for each message size

# Parsed requests with the same model and version, by three keys: the number of bytes behind the id, the number of
# payload bytes among them, and the bytes between id and payload. These end with the payload's declared size.
_Plans = dict[bytes, ParsedRequest]
_At = TypeVar("_At")


class _Place(NamedTuple):
    """Where messages of one size have what differs: bytes of the payload, and the sequence's id behind the own id."""

    tail: int
    at: int
    size: int


class _Family:
    """What is known of the messages with one model and version.

    Attributes:
        plans: of whole messages.
        forms: of messages without their sequence's id, by its place and the bytes round it.
    """

    __slots__ = ("forms", "plans")

    def __init__(self) -> None:
        self.plans: dict[int, tuple[tuple[int, _Plans], ...]] = {}
        self.forms: dict[int, tuple[tuple[_Place, _Plans], ...]] = {}


class RequestCache:
    """Parsed requests by the bytes of the messages that they were made from. Thread-safe.

    A message is model name, version, id, the rest and the payload, in this order, as protobuf's libraries write it;
    others, those with more inputs than one, and those with a number or a token are parsed each time.

    Attributes:
        bytes: the most that the cache may take. Over a bound the cache is emptied.
        among: so many caches share the bound.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.among = 1
        self._families: dict[bytes, _Family] = {}
        self._lock = threading.Lock()

    def find(self, data: bytes) -> tuple[ParsedRequest, bytes, bytes] | None:
        """(plan, id, payload) of a message like an earlier one; None for other messages."""
        try:
            at = 2 + data[1]
            if data[at] == _VERSION:
                at += 2 + data[at + 1]
            front = at
            family = self._families.get(data[:front])
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
        size = len(data) - at
        for tail, plans in family.plans.get(size, ()):
            plan = plans.get(data[at:-tail])
            if plan is not None:
                return plan, id_, data[-tail:]
        for place, forms in family.forms.get(size, ()):
            tail, cut, width = place
            cut += at
            form = forms.get(data[at:cut] + data[cut + width : -tail])
            if form is not None:
                plan = self._of_sequence(form, data[cut : cut + width])
                if plan is None:
                    return None
                if not (plan.flags.start or plan.flags.end):  # more messages like it are likely
                    self._keep_whole(data[:front], at, data, tail, plan)
                return plan, id_, data[-tail:]
        return None

    @staticmethod
    def _of_sequence(form: ParsedRequest, value: bytes) -> ParsedRequest | None:
        """A request of that form for the sequence whose id is `value`; None if the parser must read it."""
        model, like = form.flags.key  # type: ignore[misc]  # a form has a sequence
        sequence: int | str
        if isinstance(like, str):
            if not value.isascii():
                return None
            sequence = value.decode()
        else:
            sequence = _number(value)
            if not sequence:
                return None
        flags = Flags((model, sequence), form.flags.start, form.flags.end)
        return ParsedRequest(form.file, form.version, flags, form.form, form.answer)

    def keep(self, data: bytes, plan: ParsedRequest) -> None:
        """Cache the plan of `data`, if its fields are in the usual order and more messages like it are likely."""
        if plan.given or plan.flags.number or plan.flags.token or (places := _laid_out(data)) is None:
            return
        front, begin, payload = places
        if payload - begin > _LONGEST_REST:
            return
        flags, tail = plan.flags, len(data) - payload
        if not (flags.start or flags.end):
            self._keep_whole(data[:front], begin, data, tail, plan)
        if flags.key is not None and (cut := _sequence_value(data, begin, payload, flags.key[1])) is not None:
            at, size = cut
            with self._lock:
                family = self._room_for(data[:front], payload - begin)
                place = _Place(tail, at - begin, size)
                plans = _plans_at(family.forms, len(data) - begin, place, _FORMS)
                plans[data[begin:at] + data[at + size : payload]] = plan

    def _keep_whole(self, front: bytes, begin: int, data: bytes, tail: int, plan: ParsedRequest) -> None:
        rest = data[begin:-tail]
        with self._lock:
            family = self._room_for(front, len(rest))
            _plans_at(family.plans, len(data) - begin, tail, _TAILS)[rest] = plan

    def _room_for(self, front: bytes, size: int) -> _Family:
        """The family of `front`, with room for a plan whose key has `size` bytes. Called under the lock."""
        taken = _PLAN_BYTES + len(front) + size
        if self.bytes + taken > _MOST_BYTES // self.among:
            self._families, self.bytes = {}, 0
        self.bytes += taken
        return self._families.setdefault(front, _Family())


def _plans_at(known: dict[int, tuple[tuple[_At, _Plans], ...]], size: int, at: _At, most: int) -> _Plans:
    """The plans of messages with `size` bytes and what differs `at` a place. The oldest of `most` places gives way."""
    places = known.get(size, ())
    plans = dict(places).get(at)
    if plans is None:
        plans = {}
        known[size] = ((at, plans), *places[: most - 1])
    return plans


def _sequence_value(data: bytes, begin: int, end: int, sequence: int | str) -> tuple[int, int] | None:
    """Where the sequence's id lies between `begin` and `end`, and its size.

    None unless its bytes could be any other id's of that size, with nothing else read differently: the name
    "sequence_id" is there once, as the key of a parameter that has nothing but this key and this value.
    """
    name = data.find(_KEY, begin, end)
    if name < 0 or data.count(_SEQUENCE, begin, end) != 1:
        return None
    at = begin
    while at < name:  # `_laid_out` has read these fields
        length = _length(data, at + 1)
        if length is None:
            return None
        content, size = length
        if content == name and data[at] == _PARAMETER:
            break
        at = content + size
    else:
        return None
    last = name + size
    value = name + len(_KEY)
    # The parameter's value, an InferParameter, is the rest of it; and the id is the rest of that.
    size = last - value - 2
    if size < 2 or size > 0x7F or data[value] != _VALUE or data[value + 1] != size:
        return None
    kind, at = data[value + 2], value + 3
    if kind == _INT and isinstance(sequence, int):
        known = _number(data[at:last]) == sequence
    else:
        size = data[at]
        at += 1
        known = kind == _TEXT and size == last - at and data[at:last] == str(sequence).encode()
    return (at, last - at) if known else None


def _number(value: bytes) -> int:
    """The number that the bytes hold as one varint; 0 if that has over 63 bits, or they are none, or more than one."""
    number = shift = 0
    last = 7 * (len(value) - 1)
    if last > 56:
        return 0
    for byte in value:
        if (byte < 0x80) != (shift == last):
            return 0
        number |= (byte & 0x7F) << shift
        shift += 7
    return number


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
