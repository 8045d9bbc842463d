"""What a kill leaves at each point of a frame, and whether all members are then those of one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.service.durability.frame_entry import FrameEntry
from streamcell.service.frames.members import EXPIRED, LIVE, FrameSessions
from streamcell.service.server import Server
from streamcell.service.sessions.capacity import Capacity
from tests.support.frames import FrameOwner, Frames, frame
from tests.support.kill_points import journal_of, replies_late, serving
from tests.support.resumable import sums


class Left(NamedTuple):
    """The journal's bytes at a moment, and the replies that the client had."""

    data: bytes
    received: int


def serving_frames(folder: Path, tmp_path: Path, **settings: Any) -> AbstractContextManager[Server]:
    """A server whose journal has room for one stream."""
    return serving(
        models=folder, max_sessions=6, durability="process", journal_dir=tmp_path / "journal",
        journal_frame_streams=1, kept_reply_bytes=1 << 16, **settings,
    )  # fmt: skip


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    with serving_frames(folder, tmp_path, max_chunk=2) as served:
        yield served


def numbers(*handles: int) -> bytes:
    return np.array(handles, "<u4").tobytes()


def steps(counts: dict[int, int], **fields: Any) -> pb.FrameRequest:
    """So many timesteps of the number 1 for each member."""
    ones = np.ones(sum(counts.values()), "<f4").tobytes()
    lengths = numbers(*counts.values())
    return pb.FrameRequest(handles=numbers(*counts), lengths=lengths, inputs=[ones], **fields)


# Each frame, and the sums of all members behind it. Some rows are longer than a run of two steps.
FRAMES: list[tuple[pb.FrameRequest, dict[int, float]]] = [
    (frame(open_sessions=3), {0: 0, 1: 0, 2: 0}),
    (steps({0: 1, 1: 5}), {0: 1, 1: 5, 2: 0}),
    (steps({2: 7}), {0: 1, 1: 5, 2: 7}),
    (steps({0: 3}, close=numbers(1)), {0: 4, 2: 7}),
    (steps({1: 1, 2: 1}, open_sessions=2, reset=numbers(0)), {0: 0, 1: 1, 2: 8, 3: 0}),
    (steps({0: 2, 1: 2, 2: 2, 3: 2}), {0: 2, 1: 3, 2: 10, 3: 2}),
    (steps({0: 1}, close=numbers(0, 1), open_sessions=2), {0: 1, 1: 0, 2: 10, 3: 2}),
    (steps({0: 1, 1: 2, 2: 3, 3: 4}), {0: 2, 1: 2, 2: 13, 3: 6}),
    (steps({2: 1}, fork=numbers(2)), {0: 2, 1: 2, 2: 14, 3: 6, 4: 14}),
]


@pytest.fixture
def left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Left]]:
    """Sends all frames, and collects what a kill would leave at each point, with whatever is patched by then."""

    def run() -> list[Left]:
        found: list[Left] = []
        received = [0]

        def look() -> None:
            (path,) = tmp_path.glob("journal/sum/1/*.journal")
            found.append(Left(path.read_bytes(), received[0]))

        for name in ("keep", "_write", "commit"):
            real = getattr(FrameEntry, name)

            def noted(self: FrameEntry, *given: Any, real: Callable[..., None] = real) -> None:
                look()
                real(self, *given)
                look()

            monkeypatch.setattr(FrameEntry, name, noted)
        stream = Frames(f"127.0.0.1:{server.port}", FrameOwner(2).opening())
        stream.reply()
        others = [Frames(f"127.0.0.1:{server.port}", pb.FrameRequest(open=pb.OpenFrames(model="sum")))]
        others[0].reply()
        for at, (request, _) in enumerate(FRAMES, 1):
            stream.send(request)
            stream.reply()
            received[0] = at
            # Another's member takes each slot that is free, steps, and leaves: what was freed too early is overwritten.
            others[0].send(pb.FrameRequest(open_sessions=1))
            (handle,) = np.frombuffer(others[0].reply().handles, "<u4").tolist()
            others[0].send(steps({handle: 100}))
            assert sums(others[0].reply())[-1] == 100
            others[0].send(pb.FrameRequest(close=numbers(handle)))
            others[0].reply()
        look()
        return found

    return run


def wrong(left: Left, server: Server, folder: Path) -> str | None:
    """What a start would find wrong in what a kill has left there."""
    made = journal_of(left.data, server, folder)
    made.recover()
    ((stream, file),) = made.recover_streams()
    if stream.number < left.received:
        return f"lost: {stream.number} frames of {left.received} that are answered"
    expected = FRAMES[stream.number - 1][1] if stream.number else {}
    members = stream.members
    found = {
        handle: file.states[0][each["row"]].item() if each["applied"] else 0.0
        for handle, each in enumerate(members)
        if each["status"] == 1
    }
    if found != expected:
        return f"state {found} behind frame {stream.number}, not {expected}"
    has = max(0, stream.number + 1 - 2)
    if not set(stream.replies) >= set(range(has + 1, stream.number + 1)):
        return f"replies {set(stream.replies)} at frame {stream.number}"
    return None


def test_at_each_point_all_members_are_those_of_one_frame(
    left: Callable[[], list[Left]], server: Server, tmp_path: Path
) -> None:
    found = left()
    assert len(found) == 6 * len(FRAMES) + 1
    for at, each in enumerate(found):
        assert wrong(each, server, tmp_path / str(at)) is None, at


def test_a_member_that_has_expired_is_no_longer_live_in_the_file(
    folder: Path, tmp_path: Path, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """Its slot may be another session's at once."""
    with serving_frames(folder, tmp_path, idle_timeout_s=0.5) as served:
        owner = FrameOwner(2)
        stream = Frames(f"127.0.0.1:{served.port}", owner.opening(), frame(open_sessions=2))
        stream.reply(), stream.reply()
        members: Any = served.host.sessions.claim(owner.session.hex(), owner.token).session

        def expired() -> bool:
            stream.send(steps({1: 1}))
            stream.reply()
            return bool(members.status[0] == EXPIRED)

        assert eventually(expired)
        (path,) = tmp_path.glob("journal/sum/1/*.journal")
        made = journal_of(path.read_bytes(), served, tmp_path / "left")
        made.recover()
        ((found, _),) = made.recover_streams()
        assert found.members["status"].tolist() == [EXPIRED, LIVE]


def one_row(patch: pytest.MonkeyPatch) -> None:
    """Members' steps write the row that counts."""

    def rows_of(self: FrameSessions, handles: Any, start: int) -> Any:
        return self.rows[handles], self.rows[handles]

    patch.setattr(FrameSessions, "rows_of", rows_of)
    patch.setattr(FrameSessions, "stepped", lambda self, handles: None)


def note_of_the_frame_before(patch: pytest.MonkeyPatch) -> None:
    """What a frame writes counts before it is committed."""
    real = FrameEntry._write
    patch.setattr(
        FrameEntry, "_write", lambda self, members, handles, note: real(self, members, handles, note - 1)
    )


def forgets_to_touch(patch: pytest.MonkeyPatch) -> None:
    """Members are not committed with their frame."""
    patch.setattr(FrameEntry, "touch", lambda self, members, handles: None)


def late_reply(patch: pytest.MonkeyPatch) -> None:
    """A reply is kept once the next frame is there."""
    replies_late(patch, FrameEntry)


def freed_at_once(patch: pytest.MonkeyPatch) -> None:
    """What a closed member had is given out before the frame that closes it is committed."""
    real = FrameSessions.open

    def opened(self: FrameSessions, count: int, capacity: Capacity, now_s: float) -> Any:
        self.release(capacity)
        return real(self, count, capacity, now_s)

    patch.setattr(FrameSessions, "open", opened)


@pytest.mark.interpreted("its mutants replace what compiled code calls directly")
@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        (one_row, "state"), (note_of_the_frame_before, "state"), (forgets_to_touch, "state"), (late_reply, "replies"),
        (freed_at_once, "state"),
    ],
)  # fmt: skip
def test_a_server_that_breaks_a_rule_is_found(
    left: Callable[[], list[Left]],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
    found: str,
) -> None:
    mutant(monkeypatch)
    faults = [wrong(each, server, tmp_path / str(at)) for at, each in enumerate(left())]
    assert any(fault is not None and fault.startswith(found) for fault in faults)
