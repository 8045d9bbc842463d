"""A card's word on generation is held against its signature; exporters and sidecars may give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from pydantic import ValidationError

from streamcell.card import Generation, ModelCard, Signature, Tensor, check_generation, read_card, write_card
from streamcell.export import ExportError, export_model
from streamcell.models import GRU
from streamcell.service.repository.model_file import open_model

TOKEN = Tensor(name="token", dtype="int64")
ONE_HOT = Tensor(name="x", dtype="float32", step_shape=(9,))
LOGITS = Tensor(name="y", dtype="float32", step_shape=(5,), distribution="categorical_logits")
WIDE = Tensor(name="y", dtype="float32", step_shape=(9,))


def signature(*inputs: Tensor, output: Tensor = LOGITS) -> Signature:
    return Signature(inputs=inputs, outputs=(output,))


def generation(**fields: Any) -> Generation:
    return Generation(**({"output": "y", "input": "x", "head": "categorical"} | fields))


@pytest.mark.parametrize(
    ("border", "fields"),
    [
        (signature(ONE_HOT), {"offset": 4, "start": 8, "stop": 4}),
        (signature(TOKEN), {"input": "token", "encoding": "index", "offset": 27, "start": 27}),
        (signature(ONE_HOT, output=WIDE), {"head": "bernoulli"}),
        (signature(ONE_HOT, output=WIDE), {"head": "real", "deviation": (0.5,) * 9}),
    ],
)
def test_what_fits_comes_back_as_it_went_in(border: Signature, fields: dict[str, Any]) -> None:
    card = ModelCard(name="m", kind="k", signature=border, generation=generation(**fields))
    model = onnx.ModelProto()
    write_card(model, card)
    assert read_card(model) == card


def test_the_encoding_may_be_left_out() -> None:
    assert generation().encoding == "one_hot"
    assert generation(head="bernoulli").encoding == "value"
    assert generation(encoding="index").encoding == "index"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"head": "bernoulli", "encoding": "index"}, "bernoulli head goes in as value, not as index"),
        ({"encoding": "value"}, "categorical head goes in as one_hot or index, not as value"),
        ({"head": "real", "stop": 0}, "stop is for a categorical head"),
        ({"head": "bernoulli", "offset": 1}, "offset is for a categorical head"),
        ({"head": "bernoulli", "deviation": 0.1}, "deviation is for a real head"),
        ({"head": "poisson"}, "head"),
        ({"stop": -1}, "stop"),
        ({"head": "real", "deviation": float("nan")}, "deviation"),
    ],
)
def test_what_cannot_be_right_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        generation(**fields)


@pytest.mark.parametrize(
    ("border", "fields", "text"),
    [
        (signature(ONE_HOT), {"input": "h"}, "no input 'h'; it has x"),
        (signature(ONE_HOT), {"output": "z"}, "no output 'z'; it has y"),
        (signature(ONE_HOT, TOKEN), {}, "one input, this one has x, token"),
        (signature(ONE_HOT), {"head": "bernoulli"}, "needs an output of bernoulli_logits"),
        (signature(ONE_HOT), {"offset": 5}, "5 classes from token 5 on do not fit input 'x', which takes 9"),
        (signature(ONE_HOT), {"start": 9}, "start 9 is no token"),
        (signature(ONE_HOT), {"stop": 5}, "stop 5 is none of 5 classes"),
        (signature(ONE_HOT), {"encoding": "index"}, "index needs an input of step shape"),
        (
            signature(Tensor(name="x", dtype="float32")),
            {"encoding": "index"},
            "index needs an integer input, 'x' is float32",
        ),
        (signature(Tensor(name="x", dtype="int8")), {"encoding": "index", "offset": 124}, "takes 128 tokens"),
        (signature(TOKEN), {"input": "token"}, r"one_hot needs an input \[tokens\], 'token' has \[\]"),
        (signature(ONE_HOT, output=Tensor(name="y", dtype="float32")), {}, r"output \[classes\], 'y' has \[\]"),
        (
            signature(ONE_HOT, output=Tensor(name="y", dtype="int8", step_shape=(9,))),
            {"head": "real"},
            "expected a float output, 'y' is int8",
        ),
        (
            signature(ONE_HOT, output=Tensor(name="y", dtype="float32", step_shape=(3,))),
            {"head": "real"},
            r"output 'y' \[3\] cannot be fed to input 'x' \[9\]",
        ),
        (
            signature(Tensor(name="x", dtype="int8", step_shape=(9,)), output=WIDE),
            {"head": "real"},
            "a real head needs a float input",
        ),
        (signature(ONE_HOT, output=WIDE), {"head": "real", "deviation": (1.0,)}, "1 deviations for an output of 9"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_signature_is_refused(
    border: Signature, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        check_generation(border, generation(**fields))
    with pytest.raises(ValidationError, match=text):
        ModelCard(name="m", kind="k", signature=border, generation=generation(**fields))


def test_a_model_of_the_next_chord_generates_by_itself_and_others_when_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    chords = GRU(6, 4, output_size=6, distribution="bernoulli_logits")
    wanted = Generation(output="y", input="x", head="bernoulli")
    assert export_model(chords, tmp_path / "chords.onnx").generation == wanted
    assert open_model(tmp_path / "chords.onnx", "chords").generation == wanted
    assert export_model(chords, tmp_path / "mute.onnx", generation=None).generation is None
    real = GRU(6, 4, output_size=6, distribution="real")
    assert export_model(real, tmp_path / "real.onnx").generation is None
    fed = Generation(output="y", input="x", head="real")
    assert export_model(real, tmp_path / "fed.onnx", generation=fed).generation == fed
    with pytest.raises(ExportError, match="needs an output of bernoulli_logits"):
        export_model(real, tmp_path / "bad.onnx", generation=wanted)
    assert not (tmp_path / "bad.onnx").exists()


def test_a_sidecar_that_overrides_a_card_says_anew_whether_the_model_generates(tmp_path: Path) -> None:
    path = tmp_path / "chords.onnx"
    export_model(GRU(6, 4, output_size=6, distribution="bernoulli_logits"), path)
    sidecar = """
        override = true
        layout = "batch_time"
        inputs = ["x"]
        outputs = ["y"]
        lengths = "lengths"
        [[states]]
        input = "h"
        output = "h_next"
        """
    path.with_suffix(".toml").write_text(sidecar, encoding="utf-8")
    assert open_model(path, "chords").generation is None
    added = sidecar + '[generation]\noutput = "y"\ninput = "x"\nhead = "real"\n'
    path.with_suffix(".toml").write_text(added, encoding="utf-8")
    assert open_model(path, "chords").generation == Generation(output="y", input="x", head="real")
