"""A stream's opening that is known again by its bytes does what protobuf and all checks do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamcell.proto import pb
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.protocols.native import known_openings
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.inline_rig import STEP, Rig, Wire

OPENING = pb.OpenSession(model="lstm", version="1", output_mode=pb.OUTPUT_MODE_LAST, dtypes=["float32"])


@pytest.fixture(scope="module")
def rig(models_dir: Path) -> Iterator[Rig]:
    made = Rig(models_dir, "lstm")
    yield made
    made.stop()


def message(inputs: list[bytes], opening: pb.OpenSession = OPENING, **more: int) -> bytes:
    return pb.StreamRequest(open=opening, inputs=inputs, **more).SerializeToString()


def told(rig: Rig, *messages: bytes) -> object:
    """What a stream's client is told: its replies without the session's id, and the status."""
    wire = Wire(rig.later)
    stream = StreamSession(wire, rig.context)  # type: ignore[arg-type]
    for each in messages:
        if not stream.on_message(each):
            break
    rig.flush()
    if not wire.ends:
        stream.on_half_close()
    stream.on_end(False)
    replies = [pb.StreamResponse.FromString(reply) for reply in wire.replies]
    for reply in replies[:1]:
        assert len(reply.opened.session_id) == 16
        reply.opened.session_id = ""
    assert not len(rig.context.sessions)
    return [reply.SerializeToString(deterministic=True) for reply in replies], wire.ends


def told_anew(rig: Rig, *messages: bytes) -> object:
    """The same from a server that knows no opening."""
    known, rig.context.known_openings = rig.context.known_openings, {}
    try:
        return told(rig, *messages)
    finally:
        rig.context.known_openings = known


def test_the_second_opening_with_the_same_bytes_is_not_parsed(
    rig: Rig, counted: Callable[[Callable[[], object]], Counter[str]]
) -> None:
    first = told_anew(rig, message([STEP]), pb.StreamRequest(inputs=[STEP * 2]).SerializeToString())
    told(rig, message([STEP]))
    calls = counted(lambda: StreamSession(Wire(rig.later), rig.context).on_message(message([STEP])))  # type: ignore[arg-type]
    assert not calls["C:StreamRequest.FromString"]
    (live,) = rig.context.sessions.all()
    rig.context.sessions.end(live, "closed")
    rig.flush()
    assert told(rig, message([STEP]), pb.StreamRequest(inputs=[STEP * 2]).SerializeToString()) == first


@pytest.mark.parametrize(
    "data",
    [
        message([STEP * 7]),
        message([STEP * 4096]),
        message([STEP * 4097]),
        message([STEP * 300]),
        message([STEP[:-1]]),
        message([STEP + b"x"]),
        message([b""]),
        message([]),
        message([STEP, STEP]),
        message([STEP], steps=2),
        message([STEP], tag=9),
        message([bytes(1 << 20)]),
        message([STEP]) + message([STEP]),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_whatever_follows_a_known_opening_is_told_the_same(rig: Rig, data: bytes) -> None:
    told(rig, message([STEP]))
    assert OPENING.SerializeToString() in rig.context.known_openings
    assert told(rig, data) == told_anew(rig, data)


def test_a_byte_that_differs_is_never_taken_for_a_known_one(rig: Rig) -> None:
    told(rig, message([STEP]))
    told(rig, message([STEP], pb.OpenSession(model="lstm")))
    data = message([STEP])
    for at in range(len(data) - len(STEP)):
        for value in {0, 1, 2, 3, 0x31, data[at] ^ 1, data[at] ^ 0x80, 0xFF} - {data[at]}:
            changed = data[:at] + bytes((value,)) + data[at + 1 :]
            assert told(rig, changed) == told_anew(rig, changed), (at, value)


def test_another_model_of_that_name_is_opened_by_its_own_signature(rig: Rig, models_dir: Path) -> None:
    told(rig, message([STEP], pb.OpenSession(model="lstm")))
    other = load(open_model(models_dir / "deep.onnx", "lstm"), Settings.load(models=models_dir), Device())
    try:
        rig.context.models.put("lstm", [other])  # type: ignore[attr-defined]
        wire = Wire(rig.later)
        stream = StreamSession(wire, rig.context)  # type: ignore[arg-type]
        stream.on_message(message([STEP], pb.OpenSession(model="lstm")))
        (live,) = rig.context.sessions.all()
        assert live.model is other
        rig.context.sessions.end(live, "closed")
        rig.context.models.put("lstm", [])  # type: ignore[attr-defined]
        _, ((_, text, _),) = told(rig, message([STEP], pb.OpenSession(model="lstm")))  # type: ignore[misc]
        assert "unknown model" in text
    finally:
        rig.context.models.put("lstm", [rig.model])  # type: ignore[attr-defined]
        other.runner.stop()


def test_openings_that_are_kept_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_openings, "_MOST", 8)
    for number in range(30):
        # Bytes that protobuf does not know make openings of any number.
        opening = OPENING.SerializeToString() + b"\x78" + bytes((number,))
        told(rig, b"\x0a" + bytes((len(opening),)) + opening + b"\x12" + bytes((len(STEP),)) + STEP)
        assert len(rig.context.known_openings) <= 8
