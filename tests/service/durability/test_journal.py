"""A journal's file: what is believed of it, what is set aside, and what a start makes of what it finds."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamcell.service.durability import mapped_file
from streamcell.service.durability.found import Found, KeptReply, unpacked
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import FORMAT, PAGE, PLACES, STORED, Counts, file_bytes, sections
from streamcell.service.durability.mapped_file import JournalError, MappedFile
from streamcell.service.durability.told import ToldReply

MODEL = {"name": "sum", "version": "1", "sha256": "ab"}
STATES = [(np.dtype(np.float32), (2, 3)), (np.dtype(np.int64), ())]
COUNTS = Counts(first_slot=3, slots=4, window=4, reply_bytes=256, opening_bytes=64)


def found(**given: object) -> Found:
    fields = {
        "slot": 0, "row": 0, "session": secrets.token_bytes(16), "token_hash": secrets.token_bytes(32), "attempt": 3,
        "window": 2, "opening": b"opening", "number": 0, "steps": 0, **given,
    }  # fmt: skip
    return Found(**fields)  # type: ignore[arg-type]


def journal(folder: Path, counts: Counts = COUNTS, model: dict[str, str] = MODEL) -> Journal:
    return Journal(folder, model, counts, STATES)


def started(
    folder: Path, counts: Counts = COUNTS, model: dict[str, str] = MODEL
) -> tuple[Journal, list[Found]]:
    """A start that gives each session the first free slot."""
    made = journal(folder, counts, model)
    moved = []
    for slot, (each, file) in enumerate(made.recover(), counts.first_slot):
        made.open(slot, each)
        moved.append((each, file, slot))
    made.adopt(moved)
    return made, [each for each, _, _ in moved]


def die(made: Journal) -> None:
    """What SIGKILL does to a lock."""
    unlock(made._file)


def unlock(file: MappedFile) -> None:
    fcntl.flock(file._file, fcntl.LOCK_UN)


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.journal")
    return path


def stepped(made: Journal, slot: int, session: Found, steps: int) -> None:
    """A session that has applied messages of one step each."""
    entry = made.open(slot, session)
    row, other = slot, made.second(slot)
    for number in range(1, steps + 1):
        made.states[0][row] = number
        made.states[1][row] = 10 * number
        entry.keep(number, 0, b"reply %d" % number)
        entry.commit(row, number, number)
        row, other = other, row


def test_a_start_finds_each_session_with_its_last_state_and_the_replies_of_its_window(tmp_path: Path) -> None:
    made, none = started(tmp_path)
    assert not none
    sessions = [found() for _ in range(3)]
    for slot, session in enumerate(sessions, 3):
        stepped(made, slot, session, steps=slot - 3)
    ended = made.open(6, found())
    ended.close()
    die(made)
    again, have = started(tmp_path)
    assert [each.session for each in have] == [each.session for each in sessions]
    for steps, (each, session) in enumerate(zip(have, sessions, strict=True)):
        assert (each.number, each.steps, each.attempt, each.window) == (steps, steps, 3, 2)
        assert (each.token_hash, each.opening) == (session.token_hash, b"opening")
        assert each.replies == tuple(
            KeptReply(number, 0, b"reply %d" % number) for number in range(max(1, steps - 1), steps + 1)
        )
        slot = 3 + steps
        if steps:
            assert (again.states[0][slot] == steps).all()
            assert again.states[1][slot] == 10 * steps
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_not_committed_does_not_count(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    entry = made.open(3, found())
    made.states[0][3] = 1
    entry.keep(1, 0, b"one")
    entry.commit(3, 1, 5)
    made.states[0][made.second(3)] = 2  # the run of message 2, and its reply
    entry.keep(2, 0, b"two")
    die(made)
    again, (have,) = started(tmp_path)
    assert (have.number, have.steps, have.replies) == (1, 5, (KeptReply(1, 0, b"one"),))
    assert (again.states[0][3] == 1).all()


def test_a_session_that_is_put_back_to_fewer_timesteps_is_found_there(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    stepped(made, 3, session := found(), steps=3)
    entry = made.open(4, again := found())
    for row, number, steps in ((4, 1, 9), (made.second(4), 2, 5), (4, 3, 0)):
        made.states[0][row] = steps
        entry.commit(row, number, steps)
    die(made)
    now, have = started(tmp_path)
    assert [(each.session, each.number, each.steps) for each in have] == [
        (session.session, 3, 3), (again.session, 3, 0),
    ]  # fmt: skip
    assert have[1].row == 0
    assert (now.states[0][4] != 9).all()


def test_an_ended_session_s_late_commit_does_not_reach_the_next_one_of_its_slot(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    old = made.open(3, found())
    old.close()
    session = found()
    made.open(3, session)
    old.keep(1, 0, b"late")
    old.commit(3, 1, 7)
    old.close()
    die(made)
    _, (have,) = started(tmp_path)
    assert (have.session, have.number, have.steps, have.replies) == (session.session, 0, 0, ())


@pytest.mark.parametrize(
    "counts", [Counts(9, 8, 8, 512, 128), Counts(2, 2, 2, 128, 32)], ids=["larger", "smaller"]
)
def test_a_start_with_other_settings_keeps_the_sessions(tmp_path: Path, counts: Counts) -> None:
    made, _ = started(tmp_path)
    session = found()
    stepped(made, 5, session, steps=3)
    die(made)
    again, (have,) = started(tmp_path, counts)
    assert (have.session, have.number) == (session.session, 3)
    assert (again.states[0][counts.first_slot] == 3).all()
    die(again)
    _, (copied,) = started(tmp_path)
    assert copied.replies == have.replies == (KeptReply(2, 0, b"reply 2"), KeptReply(3, 0, b"reply 3"))


def test_a_session_that_does_not_fit_is_told_and_the_others_stay(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    wide, narrow = found(window=4), found(window=1)
    made.open(3, wide)
    made.open(4, narrow)
    die(made)
    _, have = started(tmp_path, Counts(3, 4, 2, 256, 64))
    assert [each.session for each in have] == [narrow.session]


def test_a_file_that_a_process_has_is_left_alone(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    stepped(made, 3, found(), steps=1)
    second, have = started(tmp_path)
    assert not have
    assert len(list(tmp_path.glob("*.journal"))) == 2
    die(made)
    die(second)
    _, have = started(tmp_path)
    assert len(have) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_start_that_is_killed_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    session = found()
    stepped(made, 3, session, steps=2)
    die(made)
    for _ in range(3):  # killed before it took the old file's place
        killed = journal(tmp_path)
        ((each, _),) = killed.recover()
        killed.open(3, each)
        for old in killed._old:
            unlock(old)
        die(killed)
    _, (have,) = started(tmp_path)
    assert have.number == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_session_in_two_files_counts_where_it_went_on(tmp_path: Path) -> None:
    first, _ = started(tmp_path)
    session = found()
    stepped(first, 3, session, steps=2)
    second, _ = started(tmp_path)
    stepped(second, 3, session, steps=3)
    die(first)
    die(second)
    again, (have,) = started(tmp_path)
    assert have.number == 3
    assert (again.states[0][3] == 3).all()


Damage = Callable[[Path], None]


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - PAGE)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(PAGE))


def overwritten(at: int, data: bytes) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return damage


def with_header(path: Path, text: bytes) -> None:
    """Give a file another header, with a right checksum."""
    size = path.stat().st_size
    head = mapped_file._HEAD.pack(mapped_file._MAGIC, FORMAT, len(text), mapped_file.zlib.crc32(text)) + text
    path.write_bytes(head.ljust(PAGE, b"\0") + bytes(size - PAGE))


def counts_that_lie(path: Path) -> None:
    """Sizes that reach beyond the file."""
    about = mapped_file._about(MODEL, Counts(3, 1 << 30, 4, 256, 64), STATES)
    with_header(path, mapped_file.json.dumps(about).encode())


def nested_deeply(path: Path) -> None:
    with_header(path, b"[" * 4000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "longer or shorter"),
        (lengthened, "longer or shorter"),
        (emptied, "no journal"),
        (overwritten(0, b"something else"), "no journal"),
        (overwritten(16, b"\x09"), "format 9"),
        (overwritten(40, b"?"), "torn"),
        (overwritten(20, b"\xff\xff\xff\x7f"), "torn"),
        (counts_that_lie, "longer or shorter"),
        (nested_deeply, "no header of a journal"),
    ],
)
def test_a_file_that_is_torn_or_foreign_is_set_aside_and_never_mapped(
    tmp_path: Path, damage: Damage, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = started(tmp_path)
    stepped(made, 3, found(), steps=1)
    die(made)
    damage(file_of(tmp_path))
    _, have = started(tmp_path)
    assert not have
    assert len(list(tmp_path.glob("*.aside"))) == 1
    assert reason in capsys.readouterr().out


def test_another_model_s_file_is_set_aside_and_no_more_than_three_are_kept(tmp_path: Path) -> None:
    for at in range(6):
        made, have = started(tmp_path, model={**MODEL, "sha256": str(at)})
        assert not have
        stepped(made, 3, found(), steps=1)
        die(made)
    assert len(list(tmp_path.glob("*.aside"))) == 3
    with pytest.raises(JournalError, match="other states"):
        MappedFile.open_old(file_of(tmp_path), {**MODEL, "sha256": "5"}, STATES[:1])


def test_after_another_start_of_the_machine_only_what_was_written_back_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = started(tmp_path)
    stepped(made, 3, found(), steps=1)
    made.kept = True
    made.end()  # the server stopped in order: all was written back
    die(made)
    monkeypatch.setattr(mapped_file, "boot_id", lambda: "another")
    again, have = started(tmp_path)
    assert [each.number for each in have] == [1]
    die(again)
    monkeypatch.undo()
    _, have = started(tmp_path)
    assert not have
    assert len(list(tmp_path.glob("*.aside"))) == 1


def test_sessions_of_a_server_that_stops_stay_and_those_that_end_do_not(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    ends, stays = made.open(3, found()), made.open(4, found())
    ends.close()
    made.kept = True
    stays.close()
    made.end()
    die(made)
    _, have = started(tmp_path)
    assert len(have) == 1
    removed, _ = started(tmp_path / "other")
    removed.end()
    assert not list((tmp_path / "other").iterdir())


def test_a_full_disk_is_told_before_it_can_kill_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        assert size == file_bytes(sections(COUNTS, STATES))
        raise OSError(mapped_file.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped_file.os, "posix_fallocate", full)
    with pytest.raises(JournalError, match="set --max-sessions lower"):
        journal(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_reply_that_is_too_large_is_refused(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    entry = made.open(3, found())
    entry.keep(1, 0, bytes(made.most_reply_bytes(2)))
    with pytest.raises(ValueError, match="can be kept"):
        entry.keep(2, 0, bytes(made.most_reply_bytes(2) + 1))


GENERATING = Counts(3, 4, 4, 720, 64, last_bytes=8, request_bytes=16)


def told(number: int, end: int) -> ToldReply:
    return ToldReply(number, end - 1, end, b"%d.%d" % (number, end))


@pytest.mark.parametrize("again", [GENERATING, Counts(5, 6, 8, 1440, 64, 8, 16)], ids=["same", "larger"])
def test_a_start_finds_how_far_a_generation_was_told_with_its_replies(tmp_path: Path, again: Counts) -> None:
    made, _ = started(tmp_path, GENERATING)
    entry = made.open(3, found())
    entry.keep(1, 0, b"one")
    entry.commit(3, 1, 5, b"last one")
    row, other = made.second(3), 3
    for end in (1, 2, 3):
        entry.tell(told(2, end), 5 + end, b"request")
        if end < 3:
            entry.commit(row, 1, 5 + end, b"last %d.." % end)
        row, other = other, row
    assert entry.since((0, 0), 1, 2) == [b"one", b"2.1", b"2.2"]
    assert entry.since((1, 1), 1, 2) == [b"2.2"]
    die(made)
    made, (have,) = started(tmp_path, again)
    assert (have.number, have.told, have.last) == (1, 2, b"last 2..")
    assert (have.generations.base, have.generations.request) == (5, b"request")
    assert have.generations.replies == (told(2, 1), told(2, 2))
    entry = made.open(again.first_slot, have)
    assert entry.since((0, 0), 1, 2) == [b"one", b"2.1", b"2.2"]


def test_a_generation_s_oldest_replies_make_room_and_are_missed(tmp_path: Path) -> None:
    made, _ = started(tmp_path, GENERATING)
    entry = made.open(3, found())
    assert entry.told is not None
    for end in range(1, PLACES + 3):
        entry.tell(told(1, end), end, b"request")
    assert entry.since((0, 1), 0, PLACES + 2) is None
    assert entry.since((0, 2), 0, PLACES + 2) == [told(1, end).data for end in range(3, PLACES + 3)]
    assert entry.told.waiting == PLACES + 2
    entry.told.acknowledge((0, PLACES))
    assert entry.told.waiting == 2
    entry.keep(1, PLACES + 2, b"the last reply")
    entry.commit(3, 1, PLACES + 2, b"12345678")
    assert entry.since((0, PLACES + 1), 1, 0) == [told(1, PLACES + 2).data, b"the last reply"]


def test_a_generation_that_was_not_committed_is_not_found(tmp_path: Path) -> None:
    made, _ = started(tmp_path, GENERATING)
    entry = made.open(3, found())
    entry.tell(told(1, 1), 1, b"request")
    die(made)
    made, (have,) = started(tmp_path, GENERATING)
    assert (have.number, have.told, have.generations.replies) == (0, 0, ())


def test_a_journal_in_memory_finds_nothing_and_leaves_nothing() -> None:
    made = Journal(None, MODEL, COUNTS, STATES)
    assert made.recover() == []
    made.adopt([])
    entry = made.open(3, found())
    made.states[0][3] = 7
    entry.keep(1, 0, b"reply")
    entry.commit(3, 1, 5)
    left = entry.committed()
    replies = unpacked(*left.replies, 2, 100, left.number)
    assert replies is not None
    assert (left.number, left.steps, list(replies)) == (1, 5, [KeptReply(1, 0, b"reply")])
    assert left.states[0] == np.full((2, 3), 7, np.float32).tobytes()
    made.kept = True
    made.end()


def test_a_session_of_a_shared_store_is_not_found_in_a_file(tmp_path: Path) -> None:
    made, _ = started(tmp_path)
    made.open(3, found(kind=STORED))
    own = found()
    made.open(4, own)
    die(made)
    assert [each.session for each in started(tmp_path)[1]] == [own.session]


@pytest.mark.parametrize("sizes", [[5, 5, 5, 5], [1, 60, 0, 7], [9]])
def test_kept_replies_are_packed_and_come_back(sizes: list[int]) -> None:
    made = Journal(None, MODEL, COUNTS, STATES)
    made.adopt([])
    entry = made.open(3, found(window=4))
    kept = [KeptReply(3 + at, at, b"%c" % at * size) for at, size in enumerate(sizes)]
    for number, steps, data in kept:
        entry.keep(number, steps, data)
    entry.commit(3, kept[-1].number, 5)
    places, data = entry.committed().replies
    number = kept[-1].number
    ring = unpacked(places, data, 4, 64, number)
    assert ring is not None
    assert list(ring) == kept
    assert len(data) == sum(sizes)
    # What a store might have instead.
    assert unpacked(places, data, 4, max(sizes) - 1, number) is None
    assert unpacked(places, data + b"x", 4, 64, number) is None
    assert unpacked(places, data[:-1], 4, 64, number) is None
    assert unpacked(places[:-8], data, 4, 64, number) is None
    assert unpacked(places, data, 4, 64, number - 1) is None
    assert unpacked(places, data, 2, 64, number) is None
    for at in range(12):
        for extreme in (-1, 1 << 62, -(1 << 63)):
            fields = np.frombuffer(places, "<i8").copy()
            fields[at] = extreme
            wrong = unpacked(fields.tobytes(), data, 4, 64, number)
            assert wrong is None or (at % 3 == 1 and extreme > 0)
    made.end()
