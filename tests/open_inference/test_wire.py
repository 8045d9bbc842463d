"""Messages that are read and written by hand, held against the generated classes: ours and Triton's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from streamcell.card import Signature, State, Tensor
from streamcell.proto.inference import oip
from streamcell.service.errors import SequenceNotStarted
from streamcell.service.oip_reply import Answer, streamed_error
from streamcell.service.oip_requests import Answers, Plans, flags, plan
from streamcell.service.oip_tensors import Form
from streamcell.service.repository import ModelFile

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
    outputs=(
        Tensor(name="y", dtype="float32", step_shape=(2,)),
        Tensor(name="z", dtype="int8"),
    ),
    states=(
        State(input="h", output="h_next", dtype="float16", shape=(2, 40)),
        State(input="c", output="c_next", dtype="bool", shape=()),
    ),
)
FILE = ModelFile("a_model", "3", Path("a_model.onnx"), SIGNATURE, None, {}, (), ())
FORMS = (Form((), 1, 1), Form((1,), 1, 1), Form((90,), 1, 90), Form((1, 1), 1, 1), Form((3, 2), 3, 2))
IDS = st.text(max_size=300)


def _sizes(form: Form) -> list[int]:
    """Bytes of y, z, h and c."""
    steps = form.rows * form.steps
    return [8 * steps, steps, 160 * form.rows, form.rows]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("names", [("y",), ("z", "y"), ("h_next", "y", "c_next"), ("c_next",)])
@settings(max_examples=20)
@given(id_=IDS)
def test_a_reply_is_what_the_generated_classes_write(id_: str, names: tuple[str, ...], form: Form) -> None:
    tensors = [bytes([at + 1]) * size for at, size in enumerate(_sizes(form))]
    answer = Answer(FILE, names, form)
    shapes = {
        "y": ("FP32", [*form.lead, 2]),
        "z": ("INT8", [*form.lead]),
        "h_next": ("FP16", [form.rows, 2, 40]),
        "c_next": ("BOOL", [form.rows]),
    }
    places = ("y", "z", "h_next", "c_next")
    expected = oip.ModelInferResponse(
        model_name="a_model",
        model_version="3",
        id=id_,
        parameters={"triton_final_response": oip.InferParameter(bool_param=True)},
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(
                name=name, datatype=shapes[name][0], shape=shapes[name][1]
            )
            for name in names
        ],
        raw_output_contents=[tensors[places.index(name)] for name in names],
    )
    assert answer.states == any("next" in name for name in names)
    for _ in range(2):  # the second time from what was kept of the first
        assert answer.message(id_.encode(), tensors) == expected.SerializeToString(deterministic=True)
        streamed = oip.ModelStreamInferResponse(infer_response=expected)
        assert answer.streamed(id_.encode(), tensors) == streamed.SerializeToString(deterministic=True)


@given(id_=IDS, text=st.text(max_size=300))
def test_an_error_is_what_the_generated_classes_write(id_: str, text: str) -> None:
    written = streamed_error(SequenceNotStarted(text), id_.encode(), 7)
    said = (
        f"[request id: {id_ or '<id_unknown>'}] [sequence: 7] INVALID_ARGUMENT SEQUENCE_NOT_STARTED: {text}"
    )
    expected = oip.ModelStreamInferResponse(error_message=said, infer_response=oip.ModelInferResponse(id=id_))
    assert written == expected.SerializeToString()


def _request(messages: Any, id_: str, sequence: int | str, payload: bytes, **more: Any) -> Any:
    request = messages.ModelInferRequest(model_name="a_model", id=id_, raw_input_contents=[payload], **more)
    request.inputs.add(name="x", datatype="FP32", shape=[len(payload) // 12, 3])
    request.outputs.add(name="y")
    if isinstance(sequence, int):
        request.parameters["sequence_id"].int64_param = sequence
    else:
        request.parameters["sequence_id"].string_param = sequence
    return request


REQUESTS = st.tuples(
    IDS,
    st.one_of(st.integers(1, 3), st.sampled_from(["a", "b"])),
    st.sampled_from([1, 2, 30, 200]),
    st.binary(min_size=12, max_size=12),
    st.sampled_from([{}, {"model_version": "3"}]),
)


@pytest.mark.parametrize("messages", [oip, service_pb2], ids=["ours", "tritons"])
@given(requests=st.lists(REQUESTS, min_size=20, max_size=60))
def test_what_is_found_is_what_a_parser_finds(messages: Any, requests: list[Any]) -> None:
    plans, answers = Plans(), Answers()
    seen: set[Any] = set()
    for id_, sequence, steps, step, more in requests:
        data = _request(messages, id_, sequence, step * steps, **more).SerializeToString()
        parsed = oip.ModelInferRequest.FromString(data)
        asked, payloads = plan(parsed, flags(parsed), FILE, answers)
        found = plans.find(data)
        like = (sequence, steps, *more)
        if found is not None:
            assert like in seen
            kept, name, payload = found
            assert (name.decode(), payload) == (id_, payloads[0])
            assert (kept.flags, kept.form, kept.version) == (asked.flags, asked.form, asked.version)
            assert kept.answer is asked.answer
        else:
            assert like not in seen or len(id_.encode()) >= 0x80
            plans.keep(data, parsed, asked)
            if len(id_.encode()) < 0x80:
                seen.add(like)


@given(data=st.binary(max_size=200))
def test_other_bytes_are_never_found(data: bytes) -> None:
    plans = Plans()
    request = _request(oip, "", 1, bytes(12))
    whole = request.SerializeToString()
    plans.keep(whole, request, plan(request, flags(request), FILE, Answers())[0])
    assert plans.find(whole) is not None
    assert plans.find(data) is None
    for cut in range(len(whole)):
        found = plans.find(whole[:cut])
        assert found is None


def test_starts_ends_and_odd_messages_are_parsed_each_time() -> None:
    plans, answers = Plans(), Answers()
    for change in ("sequence_start", "sequence_end"):
        request = _request(oip, "", 1, bytes(12))
        request.parameters[change].bool_param = True
        data = request.SerializeToString()
        plans.keep(data, request, plan(request, flags(request), FILE, answers)[0])
        assert plans.find(data) is None
    request = _request(oip, "", 1, bytes(12))
    # Fields in another order than protobuf's libraries write them in are as good a message.
    payload, rest = oip.ModelInferRequest(raw_input_contents=[bytes(12)]), oip.ModelInferRequest()
    rest.CopyFrom(request)
    del rest.raw_input_contents[:]
    data = payload.SerializeToString() + rest.SerializeToString()
    assert oip.ModelInferRequest.FromString(data) == request
    plans.keep(data, request, plan(request, flags(request), FILE, answers)[0])
    assert plans.find(data) is None


def test_the_plans_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcell.service.oip_requests._PLANS", 10)
    plans, answers = Plans(), Answers()
    found = 0
    for sequence in range(1, 40):
        request = _request(oip, "", sequence, bytes(12))
        data = request.SerializeToString()
        plans.keep(data, request, plan(request, flags(request), FILE, answers)[0])
        assert plans.find(data) is not None
    for sequence in range(1, 40):
        found += plans.find(_request(oip, "", sequence, bytes(12)).SerializeToString()) is not None
    assert 1 <= found <= 10
