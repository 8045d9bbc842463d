"""Messages that are read and written by hand, held against the generated classes: ours and Triton's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcell.card import Signature, State, Tensor
from streamcell.proto.inference import oip
from streamcell.service.errors import SequenceNotStarted, cut
from streamcell.service.protocols.oip.reply import ReplyTemplate, streamed_error
from streamcell.service.protocols.oip.tensors import RequestShape
from streamcell.service.repository.describe import Description
from streamcell.service.repository.model_file import ModelFile

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
FILE = ModelFile("a_model", "3", Path("a_model.onnx"), Description(SIGNATURE, "card"), (), ())
FORMS = (
    RequestShape((), 1, 1),
    RequestShape((1,), 1, 1),
    RequestShape((90,), 1, 90),
    RequestShape((1, 1), 1, 1),
    RequestShape((3, 2), 3, 2),
)
IDS = st.text(max_size=300)


def _sizes(form: RequestShape) -> list[int]:
    """Bytes of y, z, h and c."""
    steps = form.rows * form.steps
    return [8 * steps, steps, 160 * form.rows, form.rows]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("names", [("y",), ("z", "y"), ("h_next", "y", "c_next"), ("c_next",)])
@settings(max_examples=20)
@given(id_=IDS)
def test_a_reply_is_what_the_generated_classes_write(
    id_: str, names: tuple[str, ...], form: RequestShape
) -> None:
    tensors = [bytes([at + 1]) * size for at, size in enumerate(_sizes(form))]
    answer = ReplyTemplate(FILE, names, form)
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
    said = f"[request id: {cut(id_) or '<id_unknown>'}] [sequence: 7] INVALID_ARGUMENT SEQUENCE_NOT_STARTED: {text}"
    expected = oip.ModelStreamInferResponse(error_message=said, infer_response=oip.ModelInferResponse(id=id_))
    assert written == expected.SerializeToString()
