"""A journal's file: what is believed of it, what is set aside, and what a start makes of what it finds."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamcell.service.durability import mapped_file
from streamcell.service.durability.found import Found, KeptReply
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import PAGE, Counts, file_bytes, sections
from streamcell.service.durability.mapped_file import JournalError, MappedFile

MODEL = {"name": "sum", "version": "1", "sha256": "ab"}
STATES = [(np.dtype(np.float32), (2, 3)), (np.dtype(np.int64), ())]
COUNTS = Counts(first_slot=3, slots=4, window=4, reply_bytes=256, opening_bytes=64)


def found(**given: object) -> Found:
    fields = {
        "slot": 0, "row": 0, "session": secrets.token_bytes(16), "token_hash": secrets.token_bytes(32), "attempt": 3,
        "window": 2, "opening": b"opening", "number": 0, "stamp": 0, **given,
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
        assert (each.number, each.stamp, each.attempt, each.window) == (steps, steps, 3, 2)
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
    assert (have.number, have.stamp, have.replies) == (1, 5, (KeptReply(1, 0, b"one"),))
    assert (again.states[0][3] == 1).all()


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
    assert (have.session, have.number, have.stamp, have.replies) == (session.session, 0, 0, ())


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
    head = mapped_file._HEAD.pack(mapped_file._MAGIC, 1, len(text), mapped_file.zlib.crc32(text)) + text
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
