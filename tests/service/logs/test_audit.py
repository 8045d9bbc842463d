"""The audit log: one line an event whatever the texts are, no thread that waits, and no loss that is not told."""

from __future__ import annotations

import json
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from streamcell.service.logs.audit import Audit
from tests.support.audit_lines import audit_lines

EVIL = '\n{"event": "opened"}\r\n\x00\x1b[2J\u2028\u2029\ud800"\\ é' + "x" * 1000


def test_an_event_is_a_line_with_what_is_known_of_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(str(path))
    audit.tell("opened", session="a", peer="ipv4:10.0.0.1:1", tenant="", steps=0, seconds=1.23456, by=None)
    assert audit.flush()
    (line,) = audit_lines(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "opened",
        "session": "a",
        "peer": "ipv4:10.0.0.1:1",
        "steps": 0,
        "seconds": 1.235,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["peer", "subject", "session"])
def test_no_text_begins_another_line_or_moves_a_cursor(key: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(str(path))
    audit.tell("refused", **{key: EVIL})
    audit.tell(EVIL[:40])
    assert audit.flush()
    data = path.read_bytes()
    assert data.count(b"\n") == 2
    assert all(32 <= byte < 127 or byte == 10 for byte in data)
    first, second = audit_lines(path)
    assert (first["event"], first[key][:100]) == ("refused", EVIL[:100])
    assert len(first[key]) == 257
    assert second["event"] == EVIL[:40]


def test_a_rotated_file_gets_the_lines_until_then_and_the_new_one_those_after(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    audit = Audit(str(path))
    for number in range(5):
        audit.tell("event", number=number)
    path.rename(old)
    audit.tell("event", number=5)  # written through the descriptor
    audit.reopen()
    audit.tell("event", number=6)
    assert audit.flush()
    assert [line["number"] for line in audit_lines(old)] == [0, 1, 2, 3, 4, 5]
    assert [line["number"] for line in audit_lines(path)] == [6]
    assert descriptors_of(tmp_path) == [str(path)]


def descriptors_of(folder: Path) -> list[str]:
    """The files in a folder that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # another thread has closed it
            found.append(os.readlink(descriptor))
    return [name for name in found if name.startswith(f"{folder}/")]


def test_a_file_that_cannot_be_opened_anew_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = Audit(str(folder / "audit.log"))
    folder.rename(tmp_path / "aside")
    audit.reopen()
    audit.tell("event")
    assert audit.flush()
    assert len(audit_lines(tmp_path / "aside" / "audit.log")) == 1
    with pytest.raises(OSError, match="No such file"):
        Audit(str(folder / "audit.log"))


def test_a_reader_that_does_not_read_delays_nobody_and_what_was_lost_is_told(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(str(pipe), queue_bytes=64 * 1024)
    for number in range(4000):  # more than the pipe and the queue hold; each call returns at once
        audit.tell("event", number=number)
    assert audit.lost()["queue_full"] > 0
    read: list[bytes] = []

    def read_all() -> None:
        while not read or b'"last"' not in read[-1]:
            read.append(os.read(reader, 1 << 16))

    os.set_blocking(reader, True)
    reading = threading.Thread(target=read_all)
    reading.start()
    while not audit.flush():
        pass
    lost = audit.lost()["queue_full"]
    audit.tell("last")
    reading.join()
    os.close(reader)
    told = [json.loads(line) for line in b"".join(read).splitlines()]
    assert sum(line["event"] == "event" for line in told) + lost == 4000
    assert sum(line["lines"] for line in told if line["event"] == "lines_lost") == lost
    assert told[-1]["event"] == "last"


def test_a_full_disk_is_counted(tmp_path: Path) -> None:
    audit = Audit("/dev/full")
    audit.tell("event")
    assert audit.flush()
    assert audit.lost()["write_failed"] == 1
