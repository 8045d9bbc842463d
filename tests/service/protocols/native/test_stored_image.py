"""The images of sessions in the store are written by hand: they are what protobuf's classes would write."""

from __future__ import annotations

import random

import pytest

from streamcell.proto import pb
from streamcell.service.durability.found import Committed
from streamcell.service.durability.told import Generations, ToldReply
from streamcell.service.protocols.native.stored_image import _encode

FIXED = pb.StoredSession(
    state=pb.SnapshotContent(model="m", given=[b"g"]), token_hash=b"t" * 32, window=4, durability=2
)


def by_protobuf(committed: Committed, rest: bytes) -> pb.StoredSession:
    made = pb.StoredSession()
    made.CopyFrom(FIXED)
    made.state.values.extend(committed.states)
    made.state.step_indices = committed.steps.to_bytes(8, "little")
    made.state.last_output = committed.last
    made.applied = committed.number
    made.reply_places, made.reply_bytes = committed.replies
    told = committed.generations
    if told.number == committed.number + 1:
        made.generation.number, made.generation.base = told.number, told.base
        made.generation.request = told.request + rest
    for each in told.replies:
        made.generation.SetInParent()
        if each.number > committed.number - FIXED.window:
            made.generation.replies.add(number=each.number, begin=each.begin, end=each.end, data=each.data)
    return made


def drawn(chance: random.Random) -> Committed:
    def some(most: int) -> bytes:
        return chance.randbytes(chance.choice((0, 1, 127, 128, most)))

    number = chance.choice((0, 1, 127, 128, 1 << 35))
    generations = Generations()
    if chance.random() < 0.5:
        replies = [
            ToldReply(max(1, number + chance.randrange(-5, 2)), at, at + 1, some(300)) for at in range(3)
        ]
        generations = Generations(
            number + chance.randrange(2),
            chance.randrange(9),
            some(200),
            tuple(replies[: chance.randrange(4)]),
        )
    return Committed(
        number,
        chance.choice((0, 1, 1 << 40)),
        [some(20_000) for _ in range(chance.randrange(4))],
        some(500),
        (some(768), some(17_000)),
        generations,
    )


@pytest.mark.parametrize("seed", range(4))
def test_an_image_is_what_protobuf_s_classes_write(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        committed, rest = drawn(chance), chance.randbytes(chance.randrange(3))
        image = _encode(FIXED.SerializeToString(), FIXED.window, committed, rest)
        assert pb.StoredSession.FromString(image) == by_protobuf(committed, rest)
