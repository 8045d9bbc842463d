"""Coverage-guided fuzzing of what reads bytes by hand: `python -m tests.hostile.parsers TARGET [libFuzzer's options]`.

Each target holds a hand-written reader against another: protobuf's, or the writer of what is read. Needs `atheris`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from streamcell.card import Signature, State, Tensor
from streamcell.proto import pb
from streamcell.proto.inference import oip
from streamcell.service import errors
from streamcell.service.errors import ServiceError
from streamcell.service.frames.frame import Frame
from streamcell.service.processes import ring_records
from streamcell.service.processes.engine import ring_batch
from streamcell.service.processes.frontend import message_writer
from streamcell.service.processes.ring import Reader, Ring
from streamcell.service.protocols.common import requests
from streamcell.service.protocols.native import frame_requests, snapshots, wire
from streamcell.service.protocols.oip import request_cache as oip_plans
from streamcell.service.protocols.oip import requests as oip_requests
from streamcell.service.protocols.oip import tensors as oip_tensors
from streamcell.service.repository.describe import Description
from streamcell.service.repository.model_file import ModelFile
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.session import Output, Session, Work

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
    outputs=(Tensor(name="y", dtype="float32", step_shape=(2,)),),
    states=(State(input="h", output="h_next", dtype="float16", shape=(2, 4)),),
)
SEVERAL = Signature(
    inputs=(
        Tensor(name="x", dtype="int16", step_shape=(2,)),
        Tensor(name="flag", dtype="bool"),
        Tensor(name="half", dtype="float16", step_shape=(1, 2)),
    ),
    outputs=(Tensor(name="y", dtype="float32", step_shape=(2,)),),
)
FILES = [
    ModelFile("m", "1", Path("m.onnx"), Description(each, "card"), (), ()) for each in (SIGNATURE, SEVERAL)
]
LIMITS = requests.Limits(1 << 20, 64, allow_non_finite=False, max_generate_steps=8, max_beam_width=2)


class Model:
    """What reading a frame needs of a `LoadedModel`."""

    max_sessions, max_chunk = 64, 8

    def __init__(self, file: ModelFile) -> None:
        self.file = file


MODELS: list[Any] = [Model(file) for file in FILES]
_plans, _answers = oip_plans.RequestCache(), oip_requests.ReplyTemplates()


def read_wire(data: bytes) -> None:
    """`only_input` and `only_predict` find what protobuf finds, or leave a message to it."""
    found = wire.only_input(data)
    if found is not None:
        assert pb.StreamRequest.FromString(data) == pb.StreamRequest(inputs=[found])
    plain = wire.only_predict(data)
    if plain is not None and plain[0].isascii():
        assert pb.PredictRequest.FromString(data) == pb.PredictRequest(
            model=plain[0].decode(), inputs=[plain[1]]
        )


def read_request(data: bytes) -> None:
    """Requests that are known again are what protobuf and every check make of them."""
    found = _plans.find(data)
    try:
        request = oip_requests.parse(data)
        asked, payloads = oip_requests.plan(request, oip_requests.flags(request), FILES[0], _answers)
    except ServiceError as error:
        assert found is None
        errors.as_status(error)
        return
    assert len(payloads[0]) == asked.form.rows * asked.form.steps * 12
    if found is not None:
        plan, id_, payload = found
        assert (id_.decode(), payload) == (request.id, payloads[0])
        assert (plan.flags, plan.form, plan.version) == (asked.flags, asked.form, asked.version)
    _plans.keep(data, asked)


def read_tensors(data: bytes) -> None:
    """Tensors of several dtypes, raw or typed, are as long as their shapes say."""
    try:
        request = oip.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    try:
        inputs, payloads, _ = oip_tensors.payloads(SEVERAL, request)
        form = oip_tensors.form(SEVERAL, inputs)
        oip_tensors.check_bytes(SEVERAL, payloads, form)
    except ServiceError as error:
        errors.as_status(error)
        return
    for tensor, payload in zip(SEVERAL.inputs, payloads, strict=True):
        assert len(payload) == form.rows * form.steps * tensor.step_bytes


def read_frame(data: bytes) -> None:
    """Frames are refused, or their pieces lie within their inputs, each row's own steps once and in order."""
    which, data = (data[0] & 1, data[1:]) if data else (0, data)
    signature = FILES[which].signature
    sizes = [tensor.step_bytes for tensor in signature.inputs]
    try:
        request = pb.FrameRequest.FromString(data)
    except DecodeError:
        return
    try:
        frame = frame_requests.make_frame(request, MODELS[which], LIMITS, Output.ALL, 1)
    except ServiceError as error:
        errors.as_status(error)
        return
    if not len(frame.handles):
        return
    assert not frame.misfit(sizes)
    _run(frame, sizes)


def _run(frame: Frame, sizes: list[int]) -> None:
    frame.begin(sizes, max_batch=4, max_chunk=8, ragged=True)
    seen: dict[int, int] = {}
    while (piece := frame.next_slice) is not None:
        width = piece.longest + 1
        targets = [np.full((len(piece.rows) * width, size), 0xEE, np.uint8) for size in sizes]
        piece.copy_in(frame.inputs, targets, width)
        for place, (row, count) in enumerate(zip(piece.rows.tolist(), piece.counts.tolist(), strict=True)):
            assert frame.ok[row]
            assert seen.get(row, 0) == piece.start
            seen[row] = piece.start + count
            begin = int(frame.begins[row]) + piece.start
            for source, target in zip(frame.inputs, targets, strict=True):
                mine = target[place * width : (place + 1) * width]
                assert (mine[:count] == source[begin : begin + count]).all()
                assert (mine[count:] == source[begin + count - 1]).all()  # its own last step, nobody else's
        frame.advance()


_HEAD = struct.Struct("<BBBBHHHq")


def read_records(data: bytes) -> None:
    """Whatever headers say, a batch takes places that are there, each once, a session's in their order."""
    count = min(len(data) // _HEAD.size, 64)
    records = np.zeros((count, 96), np.uint8)
    heads = np.ndarray(count, ring_records.FIELDS, records, strides=(96,))
    for at in range(count):
        kind, mode, first, last, entry, generation, steps, index = _HEAD.unpack_from(data, at * _HEAD.size)
        heads[at] = (kind, mode, first & 1, last & 1, entry % 7, generation, steps % 40, 0.0, index)
    chosen = ring_batch.choose(
        records, max_batch=4, max_chunk=8, ragged=bool(count & 1), coalesce=bool(count & 2)
    )
    if chosen is None:
        return
    at, row, place, entries, counts = chosen
    assert len(set(at.tolist())) == len(at) == int(counts.sum())
    assert len(set(entries.tolist())) == len(entries) <= 4
    assert counts.max() <= 8
    for number, entry in enumerate(entries.tolist()):
        mine = at[row == number]
        assert (heads["entry"][mine] == entry).all()
        assert (np.diff(mine) > 0).all()
        assert (place[row == number] == np.arange(len(mine))).all()
    assert len(ring_batch.rest(records, at, entries)) == count - len(at)


def write_records(data: bytes) -> None:
    """A message is written as it is, or it is refused: no record is of a payload that is not as long as it says."""
    if len(data) < 3:
        return
    steps, done, payload = 1 + data[0] % 20, data[1] % 20, data[2:]
    layout = ring_records.Layout.of(SIGNATURE.inputs, 8)
    ring = Ring.make(64, layout.record_bytes)
    try:
        writer = message_writer.MessageWriter(ring, layout)
        work = Work((payload,), steps, Output.ALL, 0, 0.0)
        misfit = writer.misfit(work)
        assert (misfit is None) == (len(payload) == 12 * steps)
        if misfit is None:
            done = min(done, steps - 1) if steps > 1 else 0
            assert writer.message(Session("a", None, 3, 1, 0.0), work, done, steps - done)  # type: ignore[arg-type]
            writer.publish()
            records = Reader(ring).read()
            assert records is not None
            ((begin, end),) = layout.places
            assert records[:, begin:end].tobytes() == payload[12 * done :]
    finally:
        ring.close()
    text = data.decode(errors="replace")
    error = errors.WrongParameter(text, parameter=text)
    back = ring_records.unpack_error(ring_records.pack_error(error))
    assert type(back) is errors.WrongParameter


_UNSIGNED, _SIGNED = (
    snapshots.Snapshots(key, 1 << 20, allow_non_finite=False) for key in (b"", bytes(range(32)))
)


def read_snapshot(data: bytes) -> None:
    """A snapshot is refused with a typed error, or holds what fits the model: as it is, and with a right check sum."""
    frames, data = bool(data[0] & 1) if data else False, data[1:]
    head = snapshots._HEAD.pack(snapshots._MAGIC, snapshots.FORMAT, 0, len(data)) + data
    for each in (data, head + snapshots._CRC.pack(zlib.crc32(head))):
        try:
            image = _UNSIGNED.image(_UNSIGNED.unseal(each), MODELS[0], frames=frames)
        except ServiceError as error:
            errors.as_status(error)
            continue
        count, stepped = len(image.step_indices), int((image.step_indices > 0).sum())
        assert (image.step_indices >= 0).all()
        assert count <= 64
        assert len(set(image.handles.tolist())) == (count if frames else 0)
        assert [value.shape for value in image.values] == [(stepped, 16)]
        assert all(np.isfinite(value.view(np.float16)).all() for value in image.values)
        again = _SIGNED.seal(snapshots.content_of(MODELS[0], image, frames=frames))
        assert _SIGNED.image(_SIGNED.unseal(again), MODELS[0], frames=frames).values is not None
        try:
            _UNSIGNED.unseal(again)
        except ServiceError:
            continue
        raise AssertionError("a signed snapshot was taken without a key")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": read_wire,
    "oip_requests": read_request,
    "oip_tensors": read_tensors,
    "frame": read_frame,
    "ring_records": read_records,
    "ring_messages": write_records,
    "snapshot": read_snapshot,
}


READERS = (
    wire, oip_plans, oip_requests, oip_tensors, frame_requests, ring_batch, ring_records, message_writer, snapshots,
)  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """Valid messages to begin with."""
    from .recorded import recorded

    messages = [message for each in recorded() for message in (*each.first, *each.messages)]
    if target == "oip_requests":
        made = []
        for steps in (1, 2, 3):
            request = oip.ModelInferRequest(model_name="m", id="7", raw_input_contents=[bytes(12 * steps)])
            request.inputs.add(name="x", datatype="FP32", shape=[steps, 3])
            request.parameters["sequence_id"].int64_param = 9
            made.append(request.SerializeToString())
        return made
    if target == "oip_tensors":
        request = oip.ModelInferRequest(model_name="m", raw_input_contents=[bytes(8), bytes(2), bytes(8)])
        for name, datatype, shape in (
            ("x", "INT16", [2, 2]),
            ("flag", "BOOL", [2]),
            ("half", "FP16", [2, 1, 2]),
        ):
            request.inputs.add(name=name, datatype=datatype, shape=shape)
        return [request.SerializeToString(), *messages]
    if target == "snapshot":
        return [made for frames in (False, True) for made in _snapshots(frames)]
    if target == "frame":
        return [bytes((which,)) + message for message in messages for which in (0, 1)]
    return messages


def _snapshots(frames: bool) -> list[bytes]:
    """Contents of snapshots and whole ones, of sessions with and without a timestep."""
    made = []
    for steps in ([3], [0]) if not frames else ([], [4, 0, 5], [1]):
        stepped = np.ones((sum(each > 0 for each in steps), 8), np.float16)
        handles = np.arange(len(steps) if frames else 0)
        image = Image(np.array(steps, np.int64), [stepped.view(np.uint8)], (), handles=handles)
        content = snapshots.content_of(MODELS[0], image, frames=frames)
        made += [content.SerializeToString(), _UNSIGNED.seal(content)]
    return [bytes((frames,)) + each for each in made]


def main() -> None:
    """Fuzz one target until libFuzzer's options say to stop."""
    import atheris

    target = TARGETS[sys.argv.pop(1)]
    for module in READERS:
        mine = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
        methods = [method for each in mine if isinstance(each, type) for method in vars(each).values()]
        for each in (*mine, *methods):
            if isinstance(each, FunctionType):
                atheris.instrument_func(each)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
