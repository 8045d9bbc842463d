"""The hand-written codec of the hot path, byte for byte against the generated classes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from streamcell.proto import pb
from streamcell.service.protocols.common.protobuf import varint
from streamcell.service.protocols.native.wire import (
    only_input,
    only_opening,
    only_predict,
    predict_response,
    stream_response,
)

SIZES = st.sampled_from([0, 1, 2, 127, 128, 129, 300, 16383, 16384, 70000])


@given(
    outputs=st.lists(SIZES.map(bytes) | st.binary(max_size=300), max_size=3),
    steps=st.integers(0, 2**32 - 1),
    step_index=st.integers(0, 2**64 - 1),
    tag=st.integers(0, 2**64 - 1),
)
def test_replies_are_what_the_generated_class_writes(
    outputs: list[bytes], steps: int, step_index: int, tag: int
) -> None:
    reply = pb.StreamResponse(outputs=outputs, steps=steps, step_index=step_index, tag=tag)
    assert stream_response(outputs, steps, step_index, tag) == reply.SerializeToString()


@given(payload=SIZES.filter(bool).map(bytes) | st.binary(min_size=1, max_size=300))
def test_a_message_of_one_input_is_read(payload: bytes) -> None:
    assert only_input(pb.StreamRequest(inputs=[payload]).SerializeToString()) == payload


@given(
    request=st.builds(
        pb.StreamRequest,
        inputs=st.lists(st.binary(max_size=20), max_size=3),
        steps=st.integers(0, 3),
        tag=st.integers(0, 300),
        output_mode=st.integers(0, 3),
        open=st.none() | st.just(pb.OpenSession(model="m")),
    )
)
def test_whatever_else_a_message_holds_is_left_to_protobuf(request: pb.StreamRequest) -> None:
    simple = (
        request == pb.StreamRequest(inputs=request.inputs) and len(request.inputs) == 1 and request.inputs[0]
    )
    got = only_input(request.SerializeToString())
    assert got == (request.inputs[0] if simple else None)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x12" + rest))
@example(b"\x12\x80")
@example(b"\x12\x81\x00a")
@example(b"\x12" + b"\x80" * 12)
@example(b"")
def test_bytes_that_are_no_message_are_never_read_as_one(data: bytes) -> None:
    """What is taken from any bytes is what protobuf takes from them, too."""
    got = only_input(data)
    if got is None:
        return
    try:
        request = pb.StreamRequest.FromString(data)
    except DecodeError:
        pytest.fail(f"protobuf refuses {data!r}")
    assert request == pb.StreamRequest(inputs=[got])


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_varints(number: int) -> None:
    assert b"\x20" + varint(number) == (
        pb.StreamResponse(step_index=number).SerializeToString() or b"\x20\x00"
    )


@given(
    outputs=st.lists(SIZES.map(bytes) | st.binary(max_size=300), max_size=3),
    batch=st.integers(1, 2**32 - 1),
    steps=st.integers(0, 2**32 - 1),
    model=st.text(max_size=200),
    version=st.text(max_size=5),
)
def test_replies_to_predict_are_what_the_generated_class_writes(
    outputs: list[bytes], batch: int, steps: int, model: str, version: str
) -> None:
    reply = pb.PredictResponse(outputs=outputs, batch=batch, steps=steps, model=model, version=version)
    assert predict_response(outputs, batch, steps, model, version) == reply.SerializeToString()


@given(
    request=st.builds(
        pb.PredictRequest,
        model=st.text(max_size=3) | st.just("m" * 127) | st.just("m" * 128),
        version=st.text(max_size=1),
        inputs=st.lists(SIZES.map(bytes) | st.binary(max_size=20), max_size=2),
        batch=st.integers(0, 2),
        steps=st.integers(0, 3),
        output_mode=st.integers(0, 3),
    )
)
def test_a_plain_call_of_predict_is_read_and_no_other(request: pb.PredictRequest) -> None:
    simple = (
        request == pb.PredictRequest(model=request.model, inputs=request.inputs)
        and len(request.inputs) == 1
        and request.inputs[0]
        and 0 < len(request.model.encode()) < 128
    )
    got = only_predict(request.SerializeToString())
    assert got == ((request.model.encode(), request.inputs[0]) if simple else None)


@given(st.binary(max_size=40).map(lambda rest: b"\x0a\x01m" + rest) | st.binary(max_size=40))
@example(b"\x0a\x01m\x1a\x80")
@example(b"\x0a\x01m\x1a\x81\x00a")
@example(b"\x0a\x00\x1a\x01a")
def test_bytes_that_are_no_call_are_never_read_as_one(data: bytes) -> None:
    got = only_predict(data)
    if got is None or not got[0].isascii():
        return
    assert pb.PredictRequest.FromString(data) == pb.PredictRequest(model=got[0].decode(), inputs=[got[1]])


@given(
    request=st.builds(
        pb.StreamRequest,
        inputs=st.lists(SIZES.map(bytes) | st.binary(max_size=20), max_size=2),
        steps=st.integers(0, 3),
        tag=st.integers(0, 3),
        open=st.none()
        | st.builds(
            pb.OpenSession,
            model=st.text(max_size=3) | st.just("m" * 125) | st.just("m" * 126),
            output_mode=st.integers(0, 3),
        ),
    )
)
def test_an_opening_with_one_input_is_read_and_no_other(request: pb.StreamRequest) -> None:
    opening = request.open.SerializeToString()
    simple = (
        request.HasField("open")
        and request == pb.StreamRequest(open=request.open, inputs=request.inputs)
        and len(request.inputs) == 1
        and request.inputs[0]
        and len(opening) < 128
    )
    got = only_opening(request.SerializeToString())
    assert got == ((opening, request.inputs[0]) if simple else None)


@given(st.binary(max_size=40).map(lambda rest: b"\x0a\x03\x0a\x01m" + rest) | st.binary(max_size=40))
@example(b"\x0a\x00\x12\x80")
@example(b"\x0a\x00\x12\x81\x00a")
@example(b"\x0a\x03\x0a\x01m\x12\x01")
def test_bytes_that_are_no_opening_are_never_read_as_one(data: bytes) -> None:
    got = only_opening(data)
    if got is None:
        return
    try:
        opening = pb.OpenSession.FromString(got[0])
    except DecodeError:  # nor are its bytes ever known
        return
    assert pb.StreamRequest.FromString(data) == pb.StreamRequest(open=opening, inputs=[got[1]])
