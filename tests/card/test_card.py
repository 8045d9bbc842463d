"""The card in a file: it comes back as it went in, and one that cannot be right is refused by name."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from pydantic import ValidationError

from streamcell.card import (
    METADATA_KEY,
    CardError,
    ModelCard,
    Signature,
    State,
    Tensor,
    read_card,
    write_card,
)

X = Tensor(name="x", dtype="float32", step_shape=(3, 2))
Y = Tensor(name="y", dtype="int8", distribution="categorical_logits")
H = State(input="h", output="h_next", dtype="float16", shape=(2, 5), batch_axis=1, initial=0.5)


def card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": "m",
        "kind": "lstm",
        "signature": Signature(inputs=(X,), outputs=(Y,), states=(H,)),
    }
    return ModelCard(**(fields | changes))


def test_a_card_comes_back_as_it_went_in_and_replaces_an_older_one() -> None:
    model = onnx.ModelProto()
    assert read_card(model) is None
    write_card(model, card(name="older"))
    write_card(model, card(training={"seed": 1}, proof={"max_error": 1e-7}))
    assert read_card(onnx.ModelProto.FromString(model.SerializeToString())) == card(
        training={"seed": 1}, proof={"max_error": 1e-7}
    )
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "streamcell.card/1", "name": "m"}', '{"format": "other/1"}']
)
def test_a_card_that_cannot_be_read_is_an_error(text: str) -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    with pytest.raises(CardError, match="embedded model card is not valid"):
        read_card(model)


def test_a_newer_card_may_say_more() -> None:
    model = onnx.ModelProto()
    text = card().model_dump_json()
    model.metadata_props.add(key=METADATA_KEY, value=text[:-1] + ', "added_later": [1, 2]}')
    assert read_card(model) == card()


def test_sizes_in_bytes() -> None:
    signature = card().signature
    assert X.step_bytes == 24
    assert Y.step_bytes == 1
    assert H.session_bytes == signature.session_bytes == 20


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: State(input="h", output="k", dtype="float32", shape=(2,), batch_axis=2),
            "batch_axis 2 is outside",
        ),
        (
            lambda: State(input="h", output="k", dtype="float32", shape=(2, 3), initial=(1.0, 2.0)),
            "2 initial values for shape .2, 3., expected 6",
        ),
        (lambda: Signature(inputs=(X, X), outputs=(Y,)), "named more than once: x"),
        (lambda: Signature(inputs=(X,), outputs=(Y,), lengths="x"), "named more than once: x"),
        (
            lambda: Signature(inputs=(X,), outputs=(Y,), layout="batch", lengths="n"),
            "needs a layout with a time axis",
        ),
        (lambda: Signature(inputs=(), outputs=(Y,)), "inputs"),
        (lambda: Tensor(name="x", dtype="complex64"), "dtype"),
        (lambda: Tensor(name="x", dtype="float32", step_shape=(0,)), "step_shape"),
        (lambda: Tensor(name="x", dtype="float32", steps=3), "steps"),
    ],
)
def test_what_cannot_be_right_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        make()
