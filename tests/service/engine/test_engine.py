"""The engine and its pool: rows updated in place, padding that touches no session, shapes that are fixed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from streamcell.benchmarks import parity
from streamcell.service.engine.device import RECORD_ASSIGNMENT, Device, operators_elsewhere
from streamcell.service.engine.engine import Engine, EngineOptions, Staged, fixed_sizes
from streamcell.service.engine.programs import Program
from streamcell.service.graph.pooled import pool_states
from streamcell.service.load_errors import DeviceError
from streamcell.service.repository.model_file import open_model

MAX_BATCH, MAX_CHUNK, SLOTS = 8, 4, 20


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(
        device=Device(), max_sessions=SLOTS, max_batch=MAX_BATCH, max_chunk=MAX_CHUNK, **changes
    )


def engine(models_dir: Path, *, fixed: bool) -> Engine:
    file = open_model(models_dir / "lstm.onnx", "lstm")
    return Engine(
        pool_states(file.load(), file.signature),
        file.signature,
        options(fixed_shapes=fixed),
    )


def fill(on: Engine, slots: list[int], x: np.ndarray, *, fresh: bool) -> Any:
    rows, steps, _ = x.shape
    staged = on.stage(rows, steps)
    for row in range(rows):
        at = row * staged.steps * 12
        staged.inputs[0][at : at + steps * 12] = x[row].tobytes()
    staged.read[:rows] = 0 if fresh else slots
    staged.write[:rows, 0] = slots
    staged.lengths[:rows] = steps
    on.pad(staged, rows)
    return staged


@pytest.mark.parametrize("fixed", [False, True])
def test_states_stay_in_their_rows_and_no_other_row_changes(
    models_dir: Path, modules: dict[str, torch.nn.Module], fixed: bool
) -> None:
    on = engine(models_dir, fixed=fixed)
    on.warm_up()
    slots = [on.pool.first_slot + at for at in (7, 0, 19, 3, 12)]
    others = [row for row in range(on.pool.first_slot, on.pool.rows) if row not in slots]
    for row in others:  # nobody's state, but recognisable
        for value in on.pool._values:
            value.numpy()[row] = row
    x = np.random.default_rng(2).standard_normal((5, 6, 3)).astype(np.float32)
    outputs = []
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        staged = fill(on, slots, x[:, begin:end], fresh=begin == 0)
        on.run(staged)
        y = np.frombuffer(staged.outputs[0], np.float32).reshape(staged.rows, staged.steps, 2)
        outputs.append(y[:5, : end - begin].copy())
    with torch.no_grad():
        y, h, c = modules["lstm"](torch.from_numpy(x))
    np.testing.assert_allclose(np.concatenate(outputs, 1), y.numpy(), rtol=1e-5, atol=1e-5)
    for at, slot in enumerate(slots):
        held_h, held_c = on.pool.read(slot)
        np.testing.assert_allclose(held_h, h[:, at].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(held_c, c[:, at].numpy(), rtol=1e-5, atol=1e-5)
    for row in others:
        for held in on.pool.read(row):
            assert (held == row).all()
    for held in on.pool.read(0):
        assert (held == 0).all(), "the initial state is never written"


def test_padding_rows_write_a_scratch_row_each(models_dir: Path) -> None:
    on = engine(models_dir, fixed=True)
    staged = on.stage(5, 3)
    assert (staged.rows, staged.steps) == (8, 4)
    staged.write[:5, 0] = slots = [on.pool.first_slot + at for at in range(5)]
    on.pad(staged, 5)
    padding = staged.write[5:, 0].tolist()
    assert len(set(padding)) == 3
    assert all(0 < row < on.pool.first_slot for row in padding)
    assert not set(padding) & set(slots)
    assert staged.read[5:].tolist() == [0, 0, 0]
    assert staged.lengths[5:].tolist() == [1, 1, 1]


def test_a_shape_is_bound_once_and_shapes_share_memory(models_dir: Path) -> None:
    on = engine(models_dir, fixed=False)
    assert on.stage(3, 2) is on.stage(3, 2)
    small, large = on.stage(1, 1), on.stage(8, 4)
    assert np.shares_memory(small.values[0], large.values[0])


def test_bindings_are_bounded_and_single_steps_stay(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamcell.service.engine.engine._BINDINGS_KEPT", 3)
    on = engine(models_dir, fixed=False)
    single = on.stage(2, 1)
    for steps in (2, 3, 4, 2):
        on.stage(2, steps)
    assert on.stage(2, 1) is single
    for rows in (1, 3, 4, 5):
        on.stage(rows, 1)
    assert len(on._staged) == 3


def test_fixed_sizes_double_up_to_the_largest() -> None:
    assert fixed_sizes(1) == (1,)
    assert fixed_sizes(8) == (1, 2, 4, 8)
    assert fixed_sizes(100) == (1, 2, 4, 8, 16, 32, 64, 100)


@pytest.mark.parametrize("text", ["gpu", "cpu:0", "cuda:", "cuda:x", "", "cuda:-1"])
def test_a_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="expected 'cpu', 'cuda' or 'cuda:N'"):
        Device.parse(text)


def test_operators_that_run_elsewhere_are_named(models_dir: Path) -> None:
    options = ort.SessionOptions()
    path = models_dir / "lstm.onnx"
    plain = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert operators_elsewhere(plain, "CUDAExecutionProvider") == {}, "it was not asked to record them"
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert operators_elsewhere(session, "CUDAExecutionProvider")["LSTM"] == 2
    assert operators_elsewhere(session, "CPUExecutionProvider") == {}


def test_cuda_graphs_are_refused_where_there_can_be_none(models_dir: Path) -> None:
    file = open_model(models_dir / "lstm.onnx", "lstm")
    with pytest.raises(DeviceError, match="CUDA graphs need a CUDA device and fixed shapes"):
        Engine(
            pool_states(file.load(), file.signature),
            file.signature,
            options(cuda_graphs=True),
        )


@pytest.mark.parametrize("forced", [None, True])
def test_a_capture_that_fails_costs_the_graphs_only_unless_they_were_asked_for(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, forced: bool | None
) -> None:
    runner = Program.runner

    def failing(self: Program, staged: Staged, *, capture: bool = False) -> Any:
        if capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        return runner(self, staged)

    monkeypatch.setattr(Program, "runner", failing)
    file = open_model(models_dir / "lstm.onnx", "lstm")
    if forced:
        with pytest.raises(RuntimeError, match="not permitted"):
            parity.engine(file, Device(apart=True), cuda_graphs=True)
        return
    found = parity.compare(parity.engine(file, Device()), parity.engine(file, Device(apart=True)), runs=10)
    assert found.output_error < 1e-5


def test_a_graph_that_replays_something_else_is_not_used(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Program.runner

    def stale(self: Program, staged: Staged, *, capture: bool = False) -> Any:
        run = runner(self, staged, capture=capture)
        if not capture:
            return run

        def replay() -> None:  # as if it read what was there when it was captured
            staged.values[0][...] = 0
            run()

        return replay

    monkeypatch.setattr(Program, "runner", stale)
    file = open_model(models_dir / "lstm.onnx", "lstm")
    with pytest.raises(
        DeviceError, match=r"CUDA graphs give wrong results at batch sizes \[1, 2, 4, 8, 16\]"
    ):
        parity.engine(file, Device(apart=True), cell="decomposed", cuda_graphs=True)
    found = parity.compare(
        parity.engine(file, Device()), parity.engine(file, Device(apart=True), cell="decomposed"), runs=10
    )
    assert found.output_error < 1e-5


def test_devices_by_name() -> None:
    assert [str(Device.parse(text)) for text in ("cpu", "CUDA", " cuda:3 ")] == ["cpu", "cuda:0", "cuda:3"]


@pytest.mark.parametrize("device", [Device(), Device(apart=True)], ids=["host", "apart"])
def test_a_row_of_the_pool_is_copied_read_and_written_and_no_other(models_dir: Path, device: Device) -> None:
    on = parity.engine(open_model(models_dir / "lstm.onnx", "lstm"), device)
    rows = [on.pool.first_slot + at for at in range(4)]
    for row in rows:
        on.pool.write(row, [np.full_like(each, row).tobytes() for each in on.pool.read(row)])
    on.pool.copy(rows[1], rows[3])
    for row, held in zip(rows, (rows[0], rows[1], rows[2], rows[1]), strict=True):
        for state in on.pool.read(row):
            assert (state == held).all()
    for row in (0, rows[3] + 1):
        assert not any(state.any() for state in on.pool.read(row))
    with pytest.raises(ValueError, match="bytes"):
        on.pool.write(rows[0], [b"short"] * on.pool.tensors)
