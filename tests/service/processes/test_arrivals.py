"""What a front end has told its client of is known here before anybody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcell.service.errors import SessionNotFound
from tests.support.rings import Rig


class Late(Rig):
    """Its engine thread reads the rings once somebody waits for that, and no earlier."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path, own_thread=True)
        waited_for = threading.Event()
        gather, all_read = self.ring_sessions.gather, self.ring_sessions.all_read

        def late() -> None:
            if waited_for.is_set():
                gather()

        def ask(patience_s: float) -> bool:
            waited_for.set()
            return all_read(patience_s)

        monkeypatch.setattr(self.ring_sessions, "gather", late)
        monkeypatch.setattr(self.ring_sessions, "all_read", ask)
        self.table.catch_up = lambda: self.ring_sessions.all_read(60)


@pytest.fixture
def late(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    rig = Late(models_dir / "lstm.onnx", monkeypatch)
    yield rig
    rig.close()


def test_a_session_that_was_just_opened_can_be_closed(late: Late) -> None:
    front = late.front()
    entry = front.open()
    session_id = f"{front.process_number}-{entry}-{front.slot_versions[entry]}"
    assert len(late.table) == 0
    assert late.table.close(session_id) == 0
    with pytest.raises(SessionNotFound):
        late.table.close(session_id)


def test_all_who_wait_for_the_rings_are_told(late: Late) -> None:
    told: list[bool] = []
    threads = [
        threading.Thread(target=lambda: told.append(late.ring_sessions.all_read(60))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 8
