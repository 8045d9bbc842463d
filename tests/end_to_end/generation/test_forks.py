"""A fork of a state equals replay, for every kind of model: by a step that reads the parent's row, and by a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.export import export_model
from streamcell.models import CNN, GRU, LSTM, RNN, TCN, SequenceModel
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine
from streamcell.service.engine.forks import Forks
from streamcell.service.graph.pooled import pool_states
from streamcell.service.repository.model_file import open_model

WIDTH, OUT = 3, 2

KINDS: dict[str, Any] = {
    "rnn": lambda: RNN(WIDTH, 8, OUT, num_layers=2),
    "gru": lambda: GRU(WIDTH, 8, OUT, num_layers=2),
    "lstm": lambda: LSTM(WIDTH, 8, OUT, num_layers=3),
    "residual": lambda: LSTM(WIDTH, 8, OUT, num_layers=3, residual=True),
    "cnn": lambda: CNN(WIDTH, [5, 4], OUT, kernel_size=3),
    "tcn": lambda: TCN(WIDTH, [5, 5], OUT, kernel_size=2),
}


class Rows:
    """An engine, driven row by row."""

    def __init__(self, path: Path, device: Device) -> None:
        file = open_model(path, "m")
        pooled = pool_states(file.load(), file.signature, scatter=device.scatter)
        self.engine = Engine(pooled, file.signature, device=device, max_sessions=24, max_batch=8, max_chunk=4)
        self.engine.warm_up()
        self.forks = Forks(pooled.pools, self.engine.pool, device)
        first = self.engine.pool.first_slot
        self.slots = list(range(first, first + 24))

    def step(self, reads: list[int], writes: list[int], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """x [rows, WIDTH] → y [rows, OUT]."""
        rows = len(reads)
        staged = self.engine.stage(rows, 1)
        staged.inputs[0][: x.nbytes] = x.tobytes()
        staged.read[:rows], staged.write[:rows, 0], staged.lengths[:rows] = reads, writes, 1
        self.engine.pad(staged, rows)
        self.engine.run(staged)
        return np.frombuffer(staged.outputs[0], np.float32).reshape(-1, OUT)[:rows].copy()


@pytest.fixture(params=[False, True], ids=["in-place", "apart"])
def device(request: pytest.FixtureRequest) -> Device:
    """The CPU's own path, and a card's path on the CPU."""
    return Device(apart=request.param)


@pytest.fixture
def rows(request: pytest.FixtureRequest, tmp_path: Path, device: Device) -> Rows:
    torch.manual_seed(3)
    model: SequenceModel = KINDS[request.param]().eval()
    export_model(model, tmp_path / "m.onnx")
    return Rows(tmp_path / "m.onnx", device)


def inputs(count: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 1, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("rows", KINDS, indirect=True)
def test_a_fork_equals_replay(rows: Rows) -> None:
    parent, forked, copied, replayed = rows.slots[3], rows.slots[9], rows.slots[0], rows.slots[5]
    past, own, others = inputs(6, 1), inputs(5, 2), inputs(5, 3)
    for step, x in enumerate(past):
        rows.step([parent if step else 0], [parent], x)
        rows.step([replayed if step else 0], [replayed], x)
    rows.forks.copy(np.array([parent]), np.array([copied]))
    for step, (x, other) in enumerate(zip(own, others, strict=True)):
        both = np.concatenate((other, x))
        # The parent goes on by itself in the same run that its fork reads its row in.
        _, by_step = rows.step([parent, forked if step else parent], [parent, forked], both)
        (by_copy,) = rows.step([copied], [copied], x)
        (by_replay,) = rows.step([replayed], [replayed], x)
        np.testing.assert_allclose(by_step, by_replay, atol=1e-6)
        np.testing.assert_allclose(by_copy, by_replay, atol=1e-6)


@pytest.mark.parametrize("rows", KINDS, indirect=True)
@pytest.mark.parametrize("by", ["step", "copy"])
def test_states_may_change_places_in_one_run(rows: Rows, by: str) -> None:
    """Each of six rows reads one that another writes: what beams do when they are sorted anew."""
    order = [3, 3, 0, 5, 1, 3]
    some, apart = rows.slots[:6], rows.slots[8:14]
    past = np.concatenate([inputs(6, seed) for seed in range(6)], 1)
    for step, x in enumerate(past):
        rows.step(some if step else [0] * 6, some, x)
        rows.step(apart if step else [0] * 6, apart, x)
    target = rows.slots[16:22]
    x = inputs(6, 9)[:, 0]
    parents = [some[parent] for parent in order]
    if by == "copy":
        rows.forks.copy(np.array(parents), np.array(some))
        y = rows.step(some, some, x)
    else:
        y = rows.step(parents, some, x)
    wanted = rows.step([apart[parent] for parent in order], target, x)  # nobody's row is read and written
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    np.testing.assert_allclose(rows.step(some, some, x), rows.step(target, target, x), atol=1e-6)


@pytest.mark.parametrize("rows", ["gru"], indirect=True)
def test_a_child_is_named_once(rows: Rows) -> None:
    with pytest.raises(ValueError, match="distinct"):
        rows.forks.copy(np.array(rows.slots[:2]), np.array(rows.slots[5:6] * 2))
