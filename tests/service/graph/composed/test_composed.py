"""A model that nobody wrote is served right, whoever shares its batch and however it is cut, or refused in words."""

from __future__ import annotations

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

from .graphs import HEALTHY, LAYOUTS, TOKENS, WIDTH, WRONG, RandomModel, compose

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


@pytest.fixture(scope="module")
def served(models: dict[str, RandomModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that are not refused."""
    folder = tmp_path_factory.mktemp("composed")
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        onnx.save(model.graph, path)
        if model.sidecar is not None:
            path.with_suffix(".toml").write_text(model.sidecar)
        said = ""
        try:
            loaded = load(open_model(path, name), Settings.load(models=folder, max_sessions=20), Device())
            loaded.runner.stop()
            said = "; ".join(loaded.restrictions)
        except ModelLoadError as error:
            said = error.reason
            path.unlink()
            path.with_suffix(".toml").unlink(missing_ok=True)
        assert not (model.healthy and said), f"{name} {model.blocks}: {said}"
        assert "Error: " not in said, f"{name} {model.blocks}: {said}"
    return folder


def test_sixteen_interleaved_sessions_get_what_each_gets_alone(
    models: dict[str, RandomModel],
    served: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, np.ndarray[Any, Any]]],
) -> None:
    names = [path.stem for path in sorted(served.glob("*.onnx"))]
    x = np.random.default_rng(1).standard_normal((SESSIONS, TIME, WIDTH)).astype(np.float32)
    x[1::2] *= 100
    server = start_server(served)
    with connect(server.target) as client:
        got = interleaved(client, {name: fed(models[name], x) for name in names}, 2)
    for name in names:
        model = models[name]
        expected = np.stack([alone(model, row) for row in fed(model, x)])
        off = np.abs(got[name] - expected) / np.maximum(np.abs(expected).max(2, keepdims=True), 1)
        # One scale for all rows is a small leak if no row can be loud; the proof lets 3 % pass.
        assert off.max() < (0.05 if "quantised" in model.blocks else 1e-3), f"{name} {model.blocks}"


def test_the_models_are_of_every_block_and_layout(models: dict[str, RandomModel], served: Path) -> None:
    assert {block for model in models.values() for block in model.blocks} == {*HEALTHY, *WRONG}
    assert {(model.layout, model.healthy) for model in models.values()} == set(
        product(LAYOUTS, (True, False))
    )
    left = {path.stem for path in served.glob("*.onnx")}
    assert {"no_cell" in models[name].blocks for name in models.keys() - left} >= {True}
    assert {models[name].sidecar is None for name in left} == {True, False}
