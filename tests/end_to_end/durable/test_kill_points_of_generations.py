"""What a kill leaves at each point of a generation's reply, and what a server makes of it: the file as it is then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamcell.proto import pb
from streamcell.service.durability.journal import Entry
from streamcell.service.durability.told import Told
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.native import generation_requests
from streamcell.service.server import Server
from streamcell.service.sessions.session import Session
from tests.support.kill_points import serving
from tests.support.resumable import Owner, Raw

STEPS, EACH = 30, 4
GENERATE = pb.StreamRequest(
    generate=pb.Generate(steps=STEPS, feedback=pb.FEEDBACK_SAMPLE, steps_per_reply=EACH), tag=5
)


class Left(NamedTuple):
    """The journal's bytes at a moment, and the steps that the client had."""

    data: bytes
    received: int


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[[Path], Server]]:
    """Serves with that journal."""
    with ExitStack() as servers:
        yield lambda journal: servers.enter_context(
            serving(models=folder, max_sessions=4, durability="process", journal_dir=journal)
        )


def steps_of(reply: pb.StreamResponse) -> list[tuple[bytes, bytes]]:
    """Each step's choice and output."""
    (output,) = reply.outputs
    chosen = reply.generated.chosen
    return [
        (chosen[4 * step : 4 * step + 4], output[16 * step : 16 * step + 16])
        for step in range(reply.generated.steps)
    ]


def rest(raw: Raw) -> list[tuple[bytes, bytes]]:
    """The steps of the replies up to the generation's last one."""
    found = []
    while True:
        reply = raw.reply()
        found += steps_of(reply)
        if reply.generated.stop_reason:
            return found


@pytest.fixture
def lived(
    serve: Callable[[Path], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[list[str], int]]:
    """Generates, and starts a server on what a kill would leave at each point; what is wrong then, and the points."""

    def run() -> tuple[list[str], int]:
        server = serve(tmp_path / "journal")
        left: list[Left] = []
        received = [0]
        with monkeypatch.context() as patch:
            for owner, name in ((Told, "tell"), (Entry, "commit")):
                real = getattr(owner, name)

                def noted(self: Any, *given: Any, real: Callable[..., None] = real) -> None:
                    real(self, *given)
                    (path,) = tmp_path.glob("journal/dice/1/*.journal")
                    left.append(Left(path.read_bytes(), received[0]))

                patch.setattr(owner, name, noted)
            client = Owner(1, "dice")
            raw = Raw(f"127.0.0.1:{server.port}", client.opening())
            raw.opened()
            left.clear()
            raw.send(GENERATE)
            whole: list[tuple[bytes, bytes]] = []
            while len(whole) < STEPS:
                whole += steps_of(raw.reply())
                received[0] = len(whole)
        faults = []
        points = [each for each in left if each.received or len(left) < 4][1::3]
        for at, each in enumerate(points):
            folder = tmp_path / f"{at}" / "dice" / "1"
            folder.mkdir(parents=True)
            (folder / "left.journal").write_bytes(each.data)
            again = serve(tmp_path / f"{at}")
            session = again.host.sessions.claim(client.id, client.token).session
            if session.step_index and session.last_output != whole[session.step_index - 1][1]:
                faults.append(f"another last output behind {session.step_index}")
            opening = client.resume(0, received_steps=each.received)
            raw = Raw(f"127.0.0.1:{again.port}", opening)
            opened = raw.opened()
            if opened.applied_steps < each.received and not opened.applied:
                faults.append(f"lost: {opened.applied_steps} steps of {each.received}")
                continue
            if not opened.applied:
                raw.send(GENERATE)
            if whole[: each.received] + rest(raw) != whole:
                faults.append(f"other steps behind {each.received}")
        return faults, len(points)

    return run


def test_at_each_point_a_server_goes_on_as_if_nothing_had_been(
    lived: Callable[[], tuple[list[str], int]],
) -> None:
    faults, points = lived()
    assert points >= 4
    assert not faults


def draws_again(patch: pytest.MonkeyPatch) -> None:
    """The seed that the server drew is not kept."""
    real = generation_requests.again

    def again(request: pb.StreamRequest, work: Generating) -> bytes:
        kept = pb.StreamRequest.FromString(real(request, work))
        kept.generate.ClearField("seed")
        return kept.SerializeToString()

    patch.setattr("streamcell.service.protocols.native.resumable_stream.again", again)


def forgets_the_last_output(patch: pytest.MonkeyPatch) -> None:
    """What the next input is made of is kept of the step before."""
    real, before = Entry.commit, [b"", b""]

    def commit(self: Entry, row: int, number: int, stamp: int, last: bytes = b"") -> None:
        before.append(last)
        real(self, row, number, stamp, before[-2] or last)

    patch.setattr(Entry, "commit", commit)


def one_row(patch: pytest.MonkeyPatch) -> None:
    """Steps that are not told yet are written over the row that counts."""
    advance = Session.advance

    def whole_always(self: Session, steps: int, *, whole: bool) -> None:
        advance(self, steps, whole=True)

    patch.setattr(Session, "advance", whole_always)


@pytest.mark.interpreted("its mutants replace what compiled code calls directly")
@pytest.mark.parametrize("mutant", [draws_again, forgets_the_last_output, one_row])
def test_a_server_that_breaks_a_rule_is_found(
    lived: Callable[[], tuple[list[str], int]],
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutant(monkeypatch)
    assert lived()[0]
