"""An inspection says what the server makes of a model file, and its sidecar says the same again."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from streamcell.card import Generation, ModelCard, Signature, State, Tensor, write_card
from streamcell.service.lifecycle.inspection import Inspection, inspect_model
from streamcell.service.repository.describe import describe
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed, save

NEXT = "(float[b, 3] x, float[2, b, 3] h) => (float[b, 3] y, float[2, b, 3] h_next) { y = Neg(x) h_next = Add(h, x) }"
MEAN = NEXT.replace("y = Neg(x)", "m = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub(x, m)")
UNCLEAR = (
    "(float[b, 3] x, float[b, 4] a, int64 rate) => (float[b, 3] y, float[b, 4] z, float[1] version)"
    " { y = Neg(x) z = Neg(a) version = Cast <to = 1> (rate) }"
)


def inspected(folder: Path, text: str, sidecar: str | None = None) -> Inspection:
    path = save(parsed(text), folder / "m.onnx", sidecar)
    return inspect_model(path, Settings.load(models=folder, max_sessions=10))


def test_a_model_that_can_be_served(tmp_path: Path) -> None:
    found = inspected(tmp_path, NEXT)
    assert found.problems == ()
    assert found.description is not None
    assert found.description.source == "graph"
    assert found.description.states() == ["'h' float32[2, 3] → 'h_next', 24 bytes"]
    assert (found.max_batch, found.max_chunk, found.restrictions) == (256, 1, ())
    assert found.proof == "compared with each session alone and step by step: neighbours"


def test_a_model_that_is_restricted(tmp_path: Path) -> None:
    found = inspected(tmp_path, MEAN)
    assert found.problems == ()
    assert found.max_batch == 1
    (text,) = found.restrictions
    assert "ReduceMean 'm' reduces over the batch" in text


def test_all_that_is_unclear_with_likely_states(tmp_path: Path) -> None:
    (tmp_path / "mm.toml").write_text("")
    (tmp_path / "other.toml").write_text("")
    found = inspected(tmp_path, UNCLEAR)
    assert len(found.problems) == 3
    assert "input 'a' and output 'z' have one shape" in found.problems[1]
    assert "'rate' has no batch axis" in found.problems[2]
    assert found.likely_states == {"a": "z"}
    assert found.description is None
    assert found.interface is not None
    assert 'left out: "version"' in str(found.sidecar_text())
    (note,) = found.notes
    assert "mm.toml: there is no model beside it" in note


def test_mistakes_of_a_sidecar_are_told_one_by_one_with_its_name(tmp_path: Path) -> None:
    found = inspected(tmp_path, NEXT, 'layout = "batch"\ninputs = ["X"]\noutputs = ["z"]\nsize = 1\n')
    assert [text.partition(": ")[0] for text in found.problems] == ["m.toml"] * 4
    assert "unknown key" in found.problems[0]
    assert "nothing feeds these inputs: h" in found.problems[3]


def test_a_model_that_cannot_be_loaded_is_described_all_the_same(tmp_path: Path) -> None:
    found = inspected(tmp_path, NEXT.replace("Neg", "Divine"))
    (text,) = found.problems
    assert "ONNX Runtime does not take the graph" in text
    assert found.description is not None
    assert found.max_batch == 0


def test_what_is_no_model_has_nothing_but_the_problem(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"no model")
    found = inspect_model(tmp_path / "1" / "model.onnx", Settings.load(models=tmp_path))
    (text,) = found.problems
    assert "not an ONNX file" in text
    assert (found.name, found.version) == (tmp_path.name, "1")
    assert found.interface is None
    assert found.sidecar_text() is None


def test_what_may_be_a_state_of_a_model_without_one_is_a_note(tmp_path: Path) -> None:
    found = inspected(tmp_path, "(float[b, 3] x, float[b, 3] q) => (float[b, 3] y) { y = Add(x, q) }")
    assert found.problems == ()
    (note,) = found.notes
    assert "input 'q', float32[b, 3], and output 'y', float32[b, 3] may be a state" in note


AGAIN = {
    "a state behind its layers": NEXT,
    "time first": "(float[t, b, 3] x, float[1, b, 4] h) => (float[t, b, 2] y, float[1, b, 4] h_out) { }",
    "one fixed timestep": "(float[1, b, 5] x, float[1, b, 8] h0) => (float[1, b, 8] y, float[1, b, 8] hn) { }",
    "one session": "(float[1, 1, 8] x, float[1, 2, 5] buf_in) => (float[1, 3] y, float[1, 2, 5] buf_out) { }",
    "stateless": "(float[b, 8] x, int64[b] kind) => (float[b, 3] y) { }",
    "no batch axis": "(float[8] x, float[453] h) => (float[3] y, float[453] h_next) { }",
    "a state without a batch axis": "(float[1, 8] x, float[453] h) => (float[1, 3] y, float[453] h_next) { }",
    "strange names": '(float[b, 8] "x\\"\\n\U0001f600") => (float[b, 3] "y#") { }',
}


@pytest.mark.parametrize("case", AGAIN)
def test_a_sidecar_that_is_written_says_the_same(case: str, tmp_path: Path) -> None:
    model = parsed(AGAIN[case].replace('"x\\"\\n\U0001f600"', "x").replace('"y#"', "y"))
    if case == "strange names":
        model.graph.input[0].name, model.graph.output[0].name = 'x"\n\x7f\U0001f600', "y# = 'z'"
    assert_said_again(model, tmp_path)


def test_a_sidecar_that_is_written_for_a_card_says_the_same_and_overrides_it(tmp_path: Path) -> None:
    model = parsed("(int64[b] x, float[b, 4] a) => (float[b, 5] y, float[b, 4] z) { }")
    signature = Signature(
        inputs=(Tensor(name="x", dtype="int64"),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(5,), distribution="categorical_logits"),),
        states=(State(input="a", output="z", dtype="float32", shape=(4,), initial=(0.5, -2, 1e-9, 3)),),
        layout="batch",
    )
    generation = Generation(output="y", input="x", head="categorical", encoding="index", stop=0)
    write_card(model, ModelCard(name="m", kind="M", signature=signature, generation=generation))
    assert_said_again(model, tmp_path)


def assert_said_again(model: onnx.ModelProto, folder: Path) -> None:
    """The sidecar written for a model describes it as it was without one."""
    path = folder / "m.onnx"
    first = describe(model, path, None)
    sidecar = path.with_suffix(".toml")
    sidecar.write_text(
        Inspection(path, "m", "1", None, first, {}, (), ()).sidecar_text() or "", encoding="utf-8"
    )
    second = describe(model, path, sidecar)
    assert second.source == "sidecar"
    assert second.signature == first.signature
    assert (second.new_axes, second.old_axes) == (first.new_axes, first.old_axes)
    assert second.generation == first.generation
