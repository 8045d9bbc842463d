"""A model that nobody wrote is served right, whoever shares its batch and however it is cut, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

from .builder import WIDTH
from .graphs import LAYOUTS, TOKENS, RandomModel, compose
from .healthy import HEALTHY
from .wrong import WRONG

SEEDS = range(2 * len(WRONG))
SESSIONS, TIME = 16, 10


def alone(model: RandomModel, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What ONNX Runtime gives for one sequence, [time, 4] or [time], step by step, the states handed on by hand."""
    session = ort.InferenceSession(model.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    states = {
        s.name: np.full([1 if d == "b" else d for d in s.dims], s.initial, s.dtype) for s in model.states
    }
    lengths = {"lengths": np.ones(1, np.int64)} if model.lengths else {}
    names = [model.output, *(f"{name}_next" for name in states)]
    outputs = []
    for step in x:
        feed = step[None] if model.layout == "batch" else step[None, None]
        y, *after = session.run(names, {"x": feed, **lengths, **states})
        states = dict(zip(states, after, strict=True))
        outputs.append(y.reshape(WIDTH))
    return np.stack(outputs)


def fed(model: RandomModel, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x [..., 4], or a token for each of its timesteps."""
    return (np.abs(x[..., 0]) * 10).astype(np.int64) % TOKENS if model.tokens else x


@pytest.fixture(scope="module")
def models() -> dict[str, RandomModel]:
    return {f"seed{seed}": compose(seed) for seed in SEEDS}


# The operators that may be named as the cause of what is wrong with a block.
CAUSES = {
    "less_mean_of_rows": {"ReduceMean"},
    "less_mean_of_states": {"ReduceMean"},
    "summed_rows": {"CumSum"},
    "quantised": {"DynamicQuantizeLinear"},
    "flat_rows": {"Reshape", "Softmax"},
    "one_row": {"Reshape"},
    "branch_of_all_rows": {"ReduceMax"},
    "less_mean_of_steps": {"ReduceMean"},
    "padded": {"Conv"},
    "backwards": {"CumSum"},
    "reverse": {"LSTM", "GRU", "RNN"},
    "no_cell": {"LSTM"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("composed")


@pytest.fixture(scope="module")
def said(models: dict[str, RandomModel], folder: Path) -> dict[str, str]:
    """What the server says against each model. `folder` has those that are not refused."""
    texts = {}
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        onnx.save(model.graph, path)
        if model.sidecar is not None:
            path.with_suffix(".toml").write_text(model.sidecar)
        try:
            loaded = load(open_model(path, name), Settings.load(models=folder, max_sessions=20), Device())
            loaded.runner.stop()
            texts[name] = "; ".join(loaded.restrictions)
        except ModelLoadError as error:
            texts[name] = error.reason
            path.unlink()
            path.with_suffix(".toml").unlink(missing_ok=True)
    return texts


def test_nothing_is_said_against_a_healthy_model_and_the_operator_is_named_of_others(
    models: dict[str, RandomModel], said: dict[str, str]
) -> None:
    assert {name: said[name] for name, model in models.items() if model.healthy and said[name]} == {}
    wrong = {name: text for name, text in said.items() if text}
    for name, text in wrong.items():
        assert "Error: " not in text, f"{name} {models[name].blocks}: {text}"
        named = set(re.findall(r"[(;] ?([A-Z]\w+) '", text))
        (block,) = set(models[name].blocks) & set(WRONG) or {""}
        assert named <= CAUSES.get(block, set()), f"{name} {models[name].blocks}: {text}"
    told = {block for name, text in wrong.items() if "(" in text for block in models[name].blocks}
    assert told >= CAUSES.keys() - {"no_cell"}


def test_sixteen_interleaved_sessions_get_what_each_gets_alone(
    models: dict[str, RandomModel],
    said: dict[str, str],
    folder: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, np.ndarray[Any, Any]]],
) -> None:
    names = [path.stem for path in sorted(folder.glob("*.onnx"))]
    x = np.random.default_rng(1).standard_normal((SESSIONS, TIME, WIDTH)).astype(np.float32)
    x[1::2] *= 100
    server = start_server(folder)
    with connect(server.target) as client:
        got = interleaved(client, {name: fed(models[name], x) for name in names}, 2)
    for name in names:
        model = models[name]
        expected = np.stack([alone(model, row) for row in fed(model, x)])
        off = np.abs(got[name] - expected) / np.maximum(np.abs(expected).max(2, keepdims=True), 1)
        # One scale for all rows is a small leak if no row can be loud; the proof lets 3 % pass.
        assert off.max() < (0.05 if "quantised" in model.blocks else 1e-3), f"{name} {model.blocks}"


def test_the_models_are_of_every_block_and_layout(
    models: dict[str, RandomModel], said: dict[str, str], folder: Path
) -> None:
    assert {block for model in models.values() for block in model.blocks} == {*HEALTHY, *WRONG}
    assert {(model.layout, model.healthy) for model in models.values()} == set(
        product(LAYOUTS, (True, False))
    )
    served = {path.stem for path in folder.glob("*.onnx")}
    assert {"no_cell" in models[name].blocks for name in models.keys() - served} >= {True}
    assert {models[name].sidecar is None for name in served} == {True, False}
