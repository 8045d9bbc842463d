"""What a kill leaves at each point between a run, its kept reply, its commit and its reply: the file as it is then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamcell.service.durability.journal import Entry
from streamcell.service.engine.device import Device
from streamcell.service.server import Server
from streamcell.service.sessions.session import Session
from tests.support.kill_points import journal_of, replies_late, serving
from tests.support.resumable import Owner, Raw, step, sums

WINDOW = 3
RAN, KEPT, COMMITTED, REST = (
    "before the reply is kept",
    "before the commit",
    "before the reply is sent",
    "at rest",
)
# Some are longer than a run of four steps, so they are cut.
MESSAGES = [1, 3, 7, 2, 13, 1, 1, 4, 9, 1]


class Left(NamedTuple):
    """The journal's bytes at a moment, and the replies that the client had."""

    point: str
    data: bytes
    received: int


@pytest.fixture(params=["cpu", "card"])
def server(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """On the CPU, and by a card's path, whose states are copies of those in the file."""
    if request.param == "card":
        monkeypatch.setattr(Device, "parse", classmethod(lambda cls, *_, **__: Device(apart=True)))
    settings: dict[str, Any] = {"max_sessions": 4, "max_chunk": 4, "durability": "process"}
    with serving(models=folder, journal_dir=tmp_path / "journal", **settings) as served:
        yield served


@pytest.fixture
def left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Left]]:
    """Streams all messages of one session and collects what a kill would leave, with whatever is patched by then."""

    def run() -> list[Left]:
        found: list[Left] = []
        received = [0]
        keep, commit = Entry.keep, Entry.commit

        def look(point: str) -> None:
            (path,) = tmp_path.glob("journal/sum/1/*.journal")
            found.append(Left(point, path.read_bytes(), received[0]))

        def kept(self: Entry, *arguments: Any) -> None:
            look(RAN)
            keep(self, *arguments)
            look(KEPT)

        def committed(self: Entry, *arguments: Any) -> None:
            commit(self, *arguments)
            look(COMMITTED)

        monkeypatch.setattr(Entry, "keep", kept)
        monkeypatch.setattr(Entry, "commit", committed)
        raw = Raw(f"127.0.0.1:{server.port}", Owner(WINDOW).opening())
        raw.opened()
        for number, steps in enumerate(MESSAGES, 1):
            raw.send(step(*[1.0] * steps))
            assert sums(raw.reply())[-1] == sum(MESSAGES[:number])
            received[0] = number
        look(REST)
        raw.cut()
        return found

    return run


def wrong(left: Left, server: Server, folder: Path) -> str | None:
    """What a start would find wrong in what a kill has left there."""
    ((session, file),) = journal_of(left.data, server, folder).recover()
    state = file.states[0][session.row].item() if session.row else 0.0
    applied = sum(MESSAGES[: session.number])
    if session.number < left.received:
        return f"lost: {session.number} messages of {left.received} that are answered"
    if not state == session.steps == applied:
        return f"state {state}, steps {session.steps} after {applied} steps"
    # Who sent the message that is under way has the reply to the one a window before it.
    has = max(0, session.number + (left.point in (RAN, KEPT)) - WINDOW)
    numbers = {reply.number for reply in session.replies}
    if not numbers >= set(range(has + 1, session.number + 1)):
        return f"replies {numbers} at message {session.number}"
    return None


def test_at_each_point_the_state_the_count_and_the_replies_belong_together(
    left: Callable[[], list[Left]], server: Server, tmp_path: Path
) -> None:
    found = left()
    assert len({each.point for each in found}) == 4
    assert len(found) == 3 * len(MESSAGES) + 1
    for at, each in enumerate(found):
        assert wrong(each, server, tmp_path / str(at)) is None, each.point


def one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps write the row that counts."""
    advance = Session.advance

    def in_place(self: Session, steps: int, *, whole: bool) -> None:
        advance(self, steps, whole=whole)
        self.writes = self.reads

    monkeypatch.setattr(Session, "advance", in_place)


def late_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is committed with the next one's reply."""
    keep, commit = Entry.keep, Entry.commit
    due: list[Any] = []

    def kept(self: Entry, *arguments: Any) -> None:
        keep(self, *arguments)
        if due:
            commit(*due.pop())

    monkeypatch.setattr(Entry, "keep", kept)
    monkeypatch.setattr(Entry, "commit", lambda *arguments: due.append(arguments))


def late_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply is kept after its message was committed."""
    replies_late(monkeypatch, Entry)


def early_commit_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a cut message counts as a message's end."""
    advance = Session.advance

    def whole_always(self: Session, steps: int, *, whole: bool) -> None:
        advance(self, steps, whole=True)

    monkeypatch.setattr(Session, "advance", whole_always)


@pytest.mark.interpreted("its mutants replace what compiled code calls directly")
@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        (one_row, "state"), (late_commit, "lost"), (late_reply, "replies"), (early_commit_of_parts, "state"),
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
