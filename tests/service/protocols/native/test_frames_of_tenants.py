"""A tenant's quota and its resumable streams of frames, with runs that happen when the test says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcell.proto import pb
from streamcell.service.access.grant import Grant
from streamcell.service.access.policy import Terms
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.native.frame_stream import FrameStream
from streamcell.service.sessions.session import ENDED, Session
from streamcell.service.sessions.table import hash_token
from tests.support.frames import FrameOwner, frame
from tests.support.resumable import Owner, save_sum, step

from .test_resumable import Call, ResumableRig


class FrameRig(ResumableRig):
    """The same with streams of frames of one tenant."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.grant = Grant("acme", lambda: Terms(max_sessions=8))
        given = self.context
        self.of_tenant = CallContext(
            given.models, self.sessions, given.metrics, given.limits, given.kept, None, self.grant
        )

    def frames(self, *messages: pb.FrameRequest) -> Call:
        wire = self.wire()
        wire.handler = FrameStream(wire, self.of_tenant)  # type: ignore[arg-type]
        self.send(wire, *messages)
        return wire


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[FrameRig]:
    made = FrameRig(save_sum(tmp_path))
    yield made
    made.flush()
    made.stop()


def test_a_tenant_opens_no_more_empty_streams_than_it_may_have_sessions(rig: FrameRig) -> None:
    owners = [FrameOwner() for _ in range(9)]
    for owner in owners[:8]:
        assert not rig.frames(owner.opening()).ends
    assert rig.grant.sessions == 8
    refused = rig.frames(owners[8].opening())
    assert refused.ended == [
        "tenant 'acme' may have 8 sessions and has 8, 1 more are asked for: close some, or try again later"
    ]
    # The first member of a stream takes the room that the empty stream holds.
    rig.frames(owners[0].resume(0), frame(open_sessions=1))
    rig.flush()
    assert rig.grant.sessions == 8
    for owner in owners[:8]:
        rig.sessions.close(owner.session.hex(), owner.token)
    assert rig.grant.sessions == 0


def test_a_model_has_no_more_streams_of_frames_than_sessions(rig: FrameRig) -> None:
    batcher = rig.model.batcher
    most = batcher.capacity.max_sessions
    opened = [batcher.admit(lambda now_s: Session("s", ENDED, 0, 0, now_s)) for _ in range(most)]
    for session in opened:
        session.source = rig.model.frames
    refused = rig.frames(FrameOwner().opening())
    assert refused.ended == [
        f"this model has {most} streams of frames, as many as sessions: end some, or try again later"
    ]
    assert rig.grant.sessions == 0
    opened.pop().ended = True
    batcher._admitted -= 1
    assert not rig.frames(FrameOwner().opening()).ends


def test_frames_that_were_dropped_with_their_stream_give_their_room_back(rig: FrameRig) -> None:
    owner = FrameOwner()
    old = rig.frames(owner.opening())
    busy = rig.call(Owner().opening(), step(1))
    taken: list[int] = []

    def take_over() -> None:
        rig.send(old, frame(open_sessions=4))
        new = rig.frames(owner.resume(0), frame(open_sessions=4))
        rig.send(old, frame(open_sessions=4))  # it has lost the session
        newer = rig.frames(owner.resume(0), frame(open_sessions=4))
        taken.append(rig.grant.sessions)
        assert new.ended == ["another opening has taken this session"]
        assert not newer.ends

    rig.during_the_next_run(take_over)
    rig.flush()
    assert len(busy.replies) == 2
    assert taken == [4]
    rig.sessions.close(owner.session.hex(), owner.token)
    assert rig.grant.sessions == 0


def test_a_frame_that_comes_as_its_stream_ends_takes_no_room(rig: FrameRig) -> None:
    owner = FrameOwner()
    wire = rig.frames(owner.opening())
    session = rig.sessions.claim(owner.session.hex(), owner.token, "acme").session
    assert session.token_hash == hash_token(owner.token)
    granted = session.listener.granted  # type: ignore[attr-defined]
    rig.sessions.close(owner.session.hex(), owner.token)
    granted.ask(3)  # the thread that brings the frame has seen the session before
    rig.send(wire, frame(open_sessions=2))
    assert rig.grant.sessions == 0
