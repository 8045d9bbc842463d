"""What the store has of a session is read as hostile: whatever it is, the session comes here whole or not at all."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.access.identity import ANYONE
from streamcell.service.errors import ServiceError
from streamcell.service.protocols.native import stored_image
from streamcell.service.protocols.native.openings import Resume
from streamcell.service.protocols.native.stored_session import StoredSession
from streamcell.service.protocols.native.stored_sessions import StoredSessions
from streamcell.service.server import Server
from streamcell.service.sessions.table import hash_token
from streamcell.service.store.cipher import Checked
from streamcell.service.store.functions import place
from streamcell.service.store.interface import Claim, Claimed
from tests.support.kill_points import serving
from tests.support.resumable import Owner, step, sums
from tests.support.stored import Reading, has_applied, stored, waits_for_client
from tests.support.valkey import ValkeyServer
from tests.support.waiting import waited

EXTREMES = (0, 1, 2, 3, 31, 32, 33, 255, 1 << 31, (1 << 32) - 1, 1 << 42, 1 << 62, 1 << 63, (1 << 64) - 1)


@pytest.fixture(scope="module")
def server(folder: Path, shared: ValkeyServer) -> Iterator[Server]:
    with serving(
        models=folder,
        store=shared.url,
        durability="store-async",
        max_sessions=8,
        lease_s=30,
        settle_s=0,
        grace_s=0,
    ) as made:
        yield made


def stepped(server: Server) -> tuple[Owner, bytes, int, int]:
    """A session of `sum` with kept replies, and its image."""
    owner = Owner()
    raw = Reading(server, owner.opening())
    raw.opened()
    raw.send(*map(step, range(1, 7)))
    assert has_applied(server, owner, 6)
    return owner, *image_of(server, owner)


def generating(server: Server) -> tuple[Owner, bytes, int, int]:
    """A session of `dice` in the middle of a generation, and its image."""
    owner = Owner(model="dice")
    raw = Reading(server, owner.opening())
    raw.opened()
    first = pb.Generate(steps=3)
    raw.send(pb.StreamRequest(generate=first), pb.StreamRequest(generate=pb.Generate(steps=90)))
    waits_for_client(raw, stored(server, owner))
    return owner, *image_of(server, owner)


def image_of(server: Server, owner: Owner) -> tuple[bytes, int, int]:
    image = stored(server, owner).image()
    assert image is not None
    return image[2], image[0], image[1]


class Bringing:
    """Brings images of one session here, as an opening does."""

    def __init__(self, server: Server, owner: Owner) -> None:
        self.sessions = server.host.context.stored
        assert isinstance(self.sessions, StoredSessions)
        self.context = server.host.context
        self.owner = owner
        self.claim = Claim(owner.session, hash_token(owner.token), 1, "", owner.model, may_create=False)
        self.asked = Resume(owner.id, owner.token, 4, 1, (0, 0), 1, 0, True, 0, False)
        self.call: Any = SimpleNamespace(peer="test", caller=ANYONE)
        self.came = self.refused = 0
        stored(server, owner).withdraw()

    def bring(self, image: bytes, number: int, steps: int) -> StoredSession | None:
        """The session that came, settled; None: it was refused."""
        claimed = Claimed(1 << 62, False, number, steps, image, held=False)
        try:
            made = self.sessions._here(self.claim, self.asked, self.context, self.call, claimed)
        except ServiceError:
            self.refused += 1
            return None
        self.came += 1
        assert waited(lambda: made._over or not made.unsettled)
        assert not made._over, "what was checked could not be used"
        return made

    def look_at(self, made: StoredSession, number: int) -> None:
        """All that the rest of the server relies on."""
        session, window = made.live.session, made._window
        assert made.applied == number
        assert 1 <= window <= 32
        assert session.step_index >= 0
        image = made.image()
        assert image is not None
        assert image[:2] == (number, made._steps)
        for message in range(max(0, number - window), number + 1):
            lacked = made.place.lacked((message, 0), made.applied, made._steps, made._kept)
            assert lacked is None or all(len(each) <= 1 << 20 for each in lacked)
        made.withdraw()


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.randrange(1, 9)
    some = chance.randbytes(size)
    return chance.choice(
        [
            data[:at] + some + data[at + size :],
            data[:at] + some + data[at:],
            data[:at] + data[at + size :],
            data[:at],
            data + some,
            data[:at] + data[at : at + 40] * 2 + data[at + 40 :],
        ]
    )


def mutated_fields(data: bytes, chance: random.Random) -> bytes:
    """One or two fields of any depth are others."""
    image = pb.StoredSession.FromString(data)
    for _ in range(chance.choice([1, 1, 2])):
        message: Any = image
        while True:
            field = chance.choice(message.DESCRIPTOR.fields)
            value = getattr(message, field.name)
            if field.message_type is None or (field.is_repeated and not value):
                break
            message = chance.choice(list(value)) if field.is_repeated else value
        if field.is_repeated:
            _mutate_list(value, chance)
        elif field.message_type is not None:
            message.ClearField(field.name)
        elif isinstance(value, bytes):
            setattr(message, field.name, mutated_bytes(value, chance) if value else chance.randbytes(8))
        elif isinstance(value, str):
            setattr(message, field.name, chance.choice(["", "dice", "sum", "x" * 300]))
        elif isinstance(value, bool):
            setattr(message, field.name, not value)
        else:
            most = (
                1 << 31 if field.enum_type is not None or field.cpp_type != field.CPPTYPE_UINT64 else 1 << 64
            )
            setattr(message, field.name, chance.choice([each for each in EXTREMES if each < most]))
    return image.SerializeToString()


def _mutate_list(value: Any, chance: random.Random) -> None:
    if value and chance.random() < 0.5:
        del value[chance.randrange(len(value))]
    elif value:
        value.extend([value[chance.randrange(len(value))]] * chance.choice([1, 50]))


@pytest.mark.parametrize("begin", [stepped, generating])
@pytest.mark.parametrize("mutate", [mutated_bytes, mutated_fields])
def test_a_record_that_anybody_wrote_comes_here_whole_or_not_at_all(
    server: Server,
    begin: Callable[[Server], tuple[Owner, bytes, int, int]],
    mutate: Callable[[bytes, random.Random], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, image, number, steps = begin(server)
    bringing = Bringing(server, owner)
    assert server.host.store is not None
    monkeypatch.setattr(server.host.store, "enter", lambda made: None)  # the store knows of no such claim
    whole = bringing.bring(image, number, steps)
    assert whole is not None
    bringing.look_at(whole, number)
    chance = random.Random(5)
    for _ in range(400):
        made = bringing.bring(mutate(image, chance), number, steps)
        if made is not None:
            bringing.look_at(made, number)
    assert bringing.refused > 100
    assert bringing.came > 10  # else this would test the check sum of a parser alone
    assert not len(server.host.sessions) - sum(
        not isinstance(each.session.listener, StoredSession) for each in server.host.sessions.all()
    )
    raw = Reading(server, Owner().opening())
    raw.opened()
    raw.send(step(1))
    assert sums(raw.outputs()) == [1]
    raw.send(pb.StreamRequest(received=1), None)
    assert raw.end() is None


def test_without_the_checks_a_record_does_harm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, image, number, steps = generating(server)
    bringing = Bringing(server, owner)
    assert server.host.store is not None
    monkeypatch.setattr(server.host.store, "enter", lambda made: None)
    monkeypatch.setattr(stored_image, "_expect", lambda *_: None)
    chance = random.Random(5)
    harm = tries = 0
    while harm <= 5:
        assert (tries := tries + 1) <= 100
        try:
            made = bringing.bring(mutated_fields(image, chance), number, steps)
            if made is not None:
                bringing.look_at(made, number)
        except Exception:
            harm += 1
            if (listener := bringing.sessions._live(bringing.asked, bringing.context)) is not None:
                listener.withdraw()


def test_a_hostile_record_in_the_store_is_a_typed_error_for_its_client_alone(
    server: Server, shared: ValkeyServer
) -> None:
    owner, image, number, steps = stepped(server)
    stored(server, owner).lost()
    record = f"sc:s:{owner.id}"
    at = place(number, steps)
    foreign = pb.StoredSession.FromString(image)
    foreign.token_hash = secrets.token_bytes(32)
    for hostile in (b"\xff" * 50, image[: len(image) // 2], foreign.SerializeToString(), b""):
        sealed = Checked().seal(owner.session, at, hostile)
        shared.call("HSET", record, "owner", "", "at", at, "image", sealed)
        reason, facts, text = Reading(server, owner.resume(number)).error()
        assert (reason, facts["session_id"]) == ("STORED_STATE_INVALID", owner.id)
        assert "open a new" in text.lower()
    shared.call("HSET", record, "owner", "", "at", at, "image", Checked().seal(owner.session, at, image))
    assert Reading(server, owner.resume(number)).opened().applied == number
