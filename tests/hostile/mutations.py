"""Valid messages made invalid, or made to lie: seeded, so that what fails can be run again.

What is added to a message is made of bytes below 0x40, and flips change one bit: no mutation makes the bytes that mark
an honest client's input (`honest.MARK`) out of messages that have none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


def varint(number: int) -> bytes:
    """`number` as protobuf writes it."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def fields(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of each of a message's fields at the top; what is no field is one piece at the end."""
    places = []
    at = 0
    while at < len(data):
        begin = at
        size, at = _number(data, at)
        kind = size & 7
        if kind == 0:
            _, at = _number(data, at)
        elif kind == 2:
            length, at = _number(data, at)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            at = len(data)
        at = min(at, len(data))
        places.append((begin, at))
    return places


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at


def cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Without its last bytes: a step of the echo's, a value, or anything."""
    return data[: -rng.choice([1, 4, 12, 16, 32, 64, rng.randrange(1, len(data) + 1)])]


def extend(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With bytes behind."""
    return data + rng.choice([bytes, lambda n: bytes(rng.randrange(0x40) for _ in range(n))])(
        rng.choice([1, 4, 12, 32, 64, rng.randrange(1, 200)])
    )


def flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With some bits flipped, near its front for preference."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(min(len(changed), rng.choice([40, 100, len(changed)])))
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With a byte that may be a length, a size or a flag set to another number."""
    at = rng.randrange(min(len(data), 120))
    value = rng.choice([0, 1, 2, 3, 4, 8, 32, 0x3F, 0x7F, 0x80, 0xFF, (data[at] + rng.choice([-1, 1])) % 256])
    return data[:at] + bytes((value,)) + data[at + 1 :]


def swap(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With fields in another order, dropped or there twice."""
    parts = [data[begin:end] for begin, end in fields(data)]
    kind = rng.randrange(3)
    at = rng.randrange(len(parts))
    if kind == 0:
        rng.shuffle(parts)
    elif kind == 1:
        del parts[at]
    else:
        parts.insert(rng.randrange(len(parts) + 1), parts[at])
    return b"".join(parts)


def splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With fields of another message in place of its own."""
    other = rng.choice(others)
    mine, its = ([each[begin:end] for begin, end in fields(each)] for each in (data, other))
    if not its:
        return b""
    if rng.random() < 0.5:
        mine[rng.randrange(len(mine))] = rng.choice(its)
        return b"".join(mine)
    return b"".join(mine[: rng.randrange(len(mine) + 1)] + its[rng.randrange(len(its)) :])


def lie(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """With a field whose content is shorter or longer, its length told rightly; or whose length is told wrongly."""
    places = [(begin, end) for begin, end in fields(data) if data[begin] & 7 == 2]
    if not places:
        return flip(rng, data, others)
    begin, end = rng.choice(places)
    length, content = _number(data, begin + 1)
    by = rng.choice([-64, -32, -16, -12, -4, -1, 1, 4, 12, 16, 32, 64])
    if rng.random() < 0.6:
        body = data[content:end]
        body = body[:by] if by < 0 else body + bytes(by)
        return data[: begin + 1] + varint(len(body)) + body + data[end:]
    return data[: begin + 1] + varint(max(0, length + by)) + data[content:]


def junk(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Nothing of it."""
    return bytes(rng.randrange(0x40) for _ in range(rng.choice([0, 1, 3, 20, 300])))


MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    cut, cut, extend, flip, number, swap, splice, lie, lie, junk,
)  # fmt: skip


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data`, mutated once or more often; `others` are valid messages of the same method."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if data:
            data = rng.choice(MUTATIONS)(rng, data, others)
    return data
