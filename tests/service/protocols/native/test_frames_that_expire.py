"""Members that expire beside a frame that closes others: what is freed is given out once the frame is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamcell.service.durability.frame_entry import FrameEntry
from streamcell.service.protocols.native.frame_stream import FrameStream
from tests.support.frames import FrameOwner, frame
from tests.support.resumable import Owner, save_sum, step

from .test_resumable import ResumableRig, settle


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ResumableRig]:
    made = ResumableRig(
        save_sum(tmp_path), durability="process", journal_dir=tmp_path / "journal", journal_frame_streams=2
    )
    yield made
    made.flush()
    made.stop()


def test_slots_of_a_frame_s_members_are_free_once_it_is_committed(
    rig: ResumableRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = FrameOwner()
    wire = rig.wire()
    wire.handler = FrameStream(wire, rig.context)  # type: ignore[arg-type]
    rig.send(wire, owner.opening(first=1), frame(open_sessions=3))
    settle(wire, 2)
    session = rig.sessions.claim(owner.session.hex(), owner.token).session
    capacity, free = rig.model.batcher.capacity, []
    commit = FrameEntry.commit

    def noted(self: FrameEntry, row: int, number: int, steps: int, last: bytes = b"") -> None:
        free.append(capacity.versions(slots).tolist().count(0))
        commit(self, row, number, steps, last)

    monkeypatch.setattr(FrameEntry, "commit", noted)
    slots = np.array(session.slots[:3])  # type: ignore[attr-defined]
    rig.call(Owner().opening(), step(1))

    def close_and_expire() -> None:
        close = frame(close=np.array([0], "<u4").tobytes())
        session.expire_members(time.monotonic())  # as housekeeping does, which has seen no frame
        rig.send(wire, close)

    rig.during_the_next_run(close_and_expire)
    rig.flush()
    settle(wire, 3)
    assert free == [0]
    deadline_s = time.monotonic() + 60
    while not (capacity.versions(slots) == 0).all() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert capacity.versions(slots).tolist() == [0, 0, 0]
