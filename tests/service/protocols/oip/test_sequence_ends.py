"""What a request is told that comes in the very moment in which its sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamcell.service.engine.device import Device
from streamcell.service.errors import NonFiniteInput, SequenceGap, SequenceNotStarted, SessionExpired
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.protocols.oip.sequences import Sequences
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.table import Live, SessionTable
from streamcell.service.settings import Settings

KEY = ("gru", 7)


class Table(SessionTable):
    """Sessions that call `meanwhile` while one of them ends."""

    meanwhile: Callable[[], None]

    def end(self, live: Live, reason: str) -> bool:
        self.meanwhile()
        return super().end(live, reason)


@pytest.fixture
def model(models_dir: Path) -> Iterator[LoadedModel]:
    found = load(open_model(models_dir / "gru.onnx", "gru"), Settings.load(models=models_dir), Device())
    yield found
    found.batcher.stop()


@pytest.mark.interpreted("replaces what compiled code calls directly")
@pytest.mark.parametrize(
    ("error", "told"),
    [(NonFiniteInput("a NaN"), SequenceGap), (SessionExpired("idle"), SessionExpired), (None, None)],
)
def test_a_request_in_the_moment_of_the_end_is_told_of_it(
    model: LoadedModel, error: NonFiniteInput | SessionExpired | None, told: type[Exception] | None
) -> None:
    table = Table(idle_timeout_s=0)
    sequences = Sequences(table, 16)
    heard = []
    table.meanwhile = lambda: heard.append(sequences.not_started(KEY))
    sequence = sequences.start(KEY, model, "test")
    if error is None:
        sequence.close("closed")
    else:
        sequence.fail(error)
    after = sequences.not_started(KEY)
    assert [type(each) for each in (*heard, after)] == [told or SequenceNotStarted] * 2
    assert str(heard[0]) == str(after)


@pytest.mark.interpreted("replaces what compiled code calls directly")
def test_a_start_in_the_moment_of_the_end_begins_with_a_clean_slate(model: LoadedModel) -> None:
    table = Table(idle_timeout_s=0)
    sequences = Sequences(table, 16)
    started = []

    def start() -> None:
        table.meanwhile = lambda: None
        started.append(sequences.start(KEY, model, "test"))

    table.meanwhile = start
    sequences.start(KEY, model, "test").fail(NonFiniteInput("a NaN"))
    assert sequences.find(KEY) is started[0]
    started[0].close("closed")
    assert type(sequences.not_started(KEY)) is SequenceNotStarted
    assert model.batcher.live == 0
