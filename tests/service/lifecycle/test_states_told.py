"""The log says which states a model was loaded with, their sizes, and what says so; none goes unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamcell.card import ModelCard, Signature, State, Tensor, write_card
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed, save

NAMED = "(float[b, 3] x, float[b, 3] h) => (float[b, 3] y, float[b, 3] h_next) { y = Add(x, h) h_next = Identity(y) }"
SIDECAR = (
    'override = true\nlayout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
    '[[states]]\ninput = "h"\noutput = "h_next"\n'
)
DOUBTFUL = """(float[b, 8] x, float[b, 3] q) => (float[b, 3] y)
<int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}> { s = Slice(x, zero, three, one) y = Add(s, q) }"""


def log_of(path: Path, text: str, *, card: bool = False, sidecar: bool = False) -> list[dict[str, Any]]:
    """What the log says while the model is loaded."""
    model = parsed(text)
    if card:
        signature = Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="h", output="h_next", dtype="float32", shape=(3,)),),
            layout="batch",
        )
        write_card(model, ModelCard(name="m", kind="M", signature=signature))
    save(model, path / "m.onnx", SIDECAR if sidecar else None)
    with capture_logs() as log:
        load(open_model(path / "m.onnx", "m"), Settings.load(models=path), Device()).release()
    return [dict(entry) for entry in log]


@pytest.mark.parametrize(
    ("card", "sidecar", "source"), [(False, False, "graph"), (True, False, "card"), (True, True, "sidecar")]
)
def test_the_log_says_which_states_a_model_has_and_what_says_so(
    tmp_path: Path, card: bool, sidecar: bool, source: str
) -> None:
    log = log_of(tmp_path, NAMED, card=card, sidecar=sidecar)
    (entry,) = (each for each in log if each["event"] == "model loaded")
    assert entry["states"] == ["'h' float32[3] → 'h_next', 12 bytes"]
    assert entry["described_by"] == source
    assert not [each for each in log if each["event"] == "model without states"]


def test_a_model_that_may_have_a_state_is_not_served_as_one_without_in_silence(tmp_path: Path) -> None:
    """Its only output can be the state too, so it is no error."""
    log = log_of(tmp_path, DOUBTFUL)
    (entry,) = (each for each in log if each["event"] == "model without states")
    assert entry["log_level"] == "warning"
    assert entry["may_be"] == ["input 'q', float32[b, 3], and output 'y', float32[b, 3]"]
    assert "m.toml" in entry["remedy"]


def test_hundreds_of_states_are_cut(tmp_path: Path) -> None:
    count = range(100)
    text = (
        f"(float[b, 3] x, {', '.join(f'float[b, 3] h{i}' for i in count)}) => (float[b, 3] y, "
        f"{', '.join(f'float[b, 3] h{i}_next' for i in count)}) "
        f"{{ y = Neg(x) {' '.join(f'h{i}_next = Add(h{i}, x)' for i in count)} }}"
    )
    (entry,) = (each for each in log_of(tmp_path, text) if each["event"] == "model loaded")
    assert len(entry["states"]) == 21
    assert entry["states"][-1] == "… and 80 more"
