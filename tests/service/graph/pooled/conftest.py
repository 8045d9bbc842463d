"""What the tests of the pool in the graph share: a model run by hand, the same in its pool, and the two compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from streamcell.card import Signature, Tensor
from streamcell.service.graph.pooled import READ_SLOTS, WRITE_SLOTS, Pooled, initial_value, pool_states

Arrays = dict[str, np.ndarray[Any, Any]]
LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(model: onnx.ModelProto, level: str = "all", save: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if save is not None:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class ByHand:
    """The model as its author meant it: states go in and come out of every run, one session at a time."""

    def __init__(self, model: onnx.ModelProto, described: Signature, constants: Mapping[str, Any]) -> None:
        self.session = session(model)
        self.signature = described
        self.constants = dict(constants)

    def initial(self) -> Arrays:
        return {s.input: np.expand_dims(initial_value(s), s.batch_axis).copy() for s in self.signature.states}

    def step(self, feeds: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        """`feeds`: batch-first tensors of one session; gives outputs the same way, and the new states."""
        turned = self.signature.layout == "time_batch"
        swapped = {n: np.swapaxes(v, 0, 1) if turned and v.ndim > 1 else v for n, v in feeds.items()}
        wanted = [t.name for t in self.signature.outputs] + [s.output for s in self.signature.states]
        given = self.session.run(wanted, {**swapped, **states, **self.constants})
        count = len(self.signature.outputs)
        outputs = [np.swapaxes(v, 0, 1) if turned else v for v in given[:count]]
        return (
            dict(zip(wanted[:count], outputs, strict=True)),
            {s.input: v for s, v in zip(self.signature.states, given[count:], strict=True)},
        )


class InPool:
    """The rewritten model with every pool's input and output bound to one memory."""

    def __init__(
        self, pooled: Pooled, described: Signature, rows: int, level: str = "all", save: Path | None = None
    ):
        onnx.checker.check_model(pooled.model, full_check=True)
        self.session = session(pooled.model, level, save)
        self.signature = described
        self.pools = pooled.pools
        self.memory = [np.zeros((rows, *p.shape), p.dtype) for p in pooled.pools]
        for memory, pool in zip(self.memory, self.pools, strict=True):
            memory[0] = pool.initial
        self.values = [ort.OrtValue.ortvalue_from_numpy(m) for m in self.memory]

    def step(self, feeds: Arrays, read: list[int], write: list[int]) -> Arrays:
        """`feeds`: batch-first tensors of all sessions in the run."""
        binding = self.session.io_binding()
        slots: Arrays = {}
        if self.pools:
            slots = {READ_SLOTS: np.array(read, np.int64), WRITE_SLOTS: np.array(write, np.int64)[:, None]}
        for name, value in {**feeds, **slots}.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for t in self.signature.outputs:
            binding.bind_output(t.name)
        for pool, value in zip(self.pools, self.values, strict=True):
            binding.bind_ortvalue_input(pool.input, value)
            binding.bind_ortvalue_output(pool.output, value)
        self.session.run_with_iobinding(binding)
        names = [t.name for t in self.signature.outputs]
        return {n: v.numpy() for n, v in zip(names, binding.get_outputs()[: len(names)], strict=True)}


def random_feed(t: Tensor, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if t.dtype == "bool":
        return rng.random((*lead, *t.step_shape)) > 0.5
    if t.dtype.startswith("float"):
        return rng.normal(size=(*lead, *t.step_shape)).astype(t.dtype)
    return rng.integers(0, 5, (*lead, *t.step_shape)).astype(t.dtype)


def check_gathers_come_first(path: Path, pooled: Pooled) -> None:
    """In the graph as optimised, every write to a pool needs the rows that were read from it."""
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    for pool in pooled.pools:
        readers = {n.output[0] for n in graph.node if n.op_type == "Gather" and n.input[0] == pool.input}
        users = [n for n in graph.node if pool.input in n.input]
        assert len(users) == len(readers) + 1
        reached: set[str] = set()
        pending = [pool.output]
        while pending:
            name = pending.pop()
            if name not in reached and name in makers:
                reached.add(name)
                pending += makers[name].input
        assert readers <= reached, f"{pool.input} may be written before it is read"


def check_pooled(
    model: onnx.ModelProto,
    described: Signature,
    folder: Path,
    constants: Mapping[str, Any] | None = None,
    *,
    scatter: str = "nd",
    level: str = "all",
    batch: int | None = None,
    tolerance: float = 1e-6,
) -> InPool:
    """Sessions in random company give what each gives alone; rows that no run writes keep every bit."""
    rng = np.random.default_rng(0)
    rows, guard = 8, 7
    before = model.SerializeToString()
    few = scatter == "elements"
    pooled = pool_states(model, described, constants, scatter=scatter, few_kernels=few)  # type: ignore[arg-type]
    assert model.SerializeToString() == before
    in_pool = InPool(pooled, described, rows, level, folder / "optimised.onnx")
    check_gathers_come_first(folder / "optimised.onnx", pooled)
    by_hand = ByHand(model, described, constants or {})
    for memory in in_pool.memory:
        memory[guard] = random_feed(Tensor(name="guard", dtype=memory.dtype.name), memory.shape[1:], rng)
    states = {row: by_hand.initial() for row in range(1, guard)}
    fresh = set(states)
    for _ in range(8):
        live = rng.permutation(list(states))[: batch or rng.integers(1, guard)].tolist()
        steps = int(rng.integers(1, 4)) if described.has_time else 0
        lead = (len(live), steps) if described.has_time else (len(live),)
        feeds = {t.name: random_feed(t, lead, rng) for t in described.inputs}
        if described.lengths:
            feeds[described.lengths] = rng.integers(1, steps + 1, len(live)).astype(np.int32)
        kept = [memory.copy() for memory in in_pool.memory]
        got = in_pool.step(feeds, [0 if row in fresh else row for row in live], live)
        for index, row in enumerate(live):
            fresh.discard(row)
            alone = {name: value[index : index + 1] for name, value in feeds.items()}
            wanted, states[row] = by_hand.step(alone, states[row])
            for name, value in wanted.items():
                assert got[name][index : index + 1].shape == value.shape
                np.testing.assert_allclose(
                    got[name][index : index + 1], value, rtol=tolerance, atol=tolerance
                )
            for memory, s in zip(in_pool.memory, described.states, strict=True):
                new = np.squeeze(states[row][s.input], s.batch_axis)
                np.testing.assert_allclose(memory[row], new, rtol=tolerance, atol=tolerance)
        for memory, old in zip(in_pool.memory, kept, strict=True):
            others = [row for row in range(rows) if row not in live]
            assert memory[others].tobytes() == old[others].tobytes()
    return in_pool


@pytest.fixture(name="check")
def _check() -> Any:
    """`check(model, signature, folder, constants, *, scatter, level, batch, tolerance) -> InPool`."""
    return check_pooled


@pytest.fixture(name="in_pool")
def _in_pool() -> type[InPool]:
    """`in_pool(pooled, signature, rows)`: a rewritten model with its pools in place."""
    return InPool
