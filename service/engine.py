"""One run of a model over a batch: staging buffers, bindings made once for each shape, states updated in place."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import onnxruntime as ort

from streamcell.card import Signature

from .device import Device
from .pool import INITIAL_ROW, StatePool
from .rewrite import READ_SLOTS, WRITE_SLOTS, Pooled

_BINDINGS_KEPT = 512


def fixed_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to and including `most`: the sizes that padding rounds up to."""
    sizes = []
    size = 1
    while size < most:
        sizes.append(size)
        size *= 2
    return (*sizes, most)


class Staged:
    """The buffers of one shape of run: `rows` sessions of up to `steps` timesteps each.

    `inputs` and `outputs` are byte views of [rows, steps, *step_shape] tensors in C order; `read` and `write`
    int64[rows] are the pool rows to gather from and to scatter to; `lengths` int32[rows].
    """

    __slots__ = ("binding", "inputs", "lengths", "outputs", "read", "rows", "steps", "values", "write")

    def __init__(self, rows: int, steps: int) -> None:
        self.rows = rows
        self.steps = steps
        self.binding: ort.IOBinding
        self.values: list[np.ndarray[Any, Any]] = []
        self.inputs: list[memoryview] = []
        self.outputs: list[memoryview] = []
        self.read = np.zeros(rows, np.int64)
        self.write = np.zeros((rows, 1), np.int64)
        self.lengths = np.full(rows, steps, np.int32)


class Engine:
    """A loaded model on its device.

    Staging memory is one flat buffer an input or output, sized for the largest run; each shape of run is a view
    of its front, so memory does not grow with the number of shapes seen. Not thread-safe: one thread runs it.
    """

    def __init__(
        self,
        pooled: Pooled,
        signature: Signature,
        *,
        device: Device,
        max_sessions: int,
        max_batch: int,
        max_chunk: int,
        intra_op_threads: int = 1,
        fixed_shapes: bool | None = None,
    ) -> None:
        """Build the session and the pool.

        Args:
            pooled: the graph with its states gathered from and scattered to the pool.
            signature: the model's border.
            device: where it runs.
            max_sessions: slots in the pool.
            max_batch: the most rows of a run.
            max_chunk: the most timesteps a row of a run.
            intra_op_threads: ONNX Runtime's threads within an operator.
            fixed_shapes: pad runs to sizes 1, 2, 4, …; None: on CUDA only.
        """
        self.signature = signature
        self.device = device
        # Whether a run that fails has left every state as it was.
        self.commits_last = pooled.commits_last
        # A graph with a fixed batch takes that batch and no other.
        self._fixed_batch = pooled.fixed_batch
        self.max_batch = self._fixed_batch or min(max_batch, signature.max_batch or max_batch)
        self.max_chunk = max_chunk if signature.has_time else 1
        self.fixed_shapes = (not device.on_host) if fixed_shapes is None else fixed_shapes
        self._batch_sizes = (self._fixed_batch,) if self._fixed_batch else fixed_sizes(self.max_batch)
        self._chunk_sizes = fixed_sizes(self.max_chunk) if signature.lengths else None
        self.session = device.session(pooled.model.SerializeToString(), intra_op_threads=intra_op_threads)
        self.pool = StatePool(
            pooled.pools, slots=max_sessions if signature.states else 0, scratch=self.max_batch, device=device
        )
        self._input_buffers = [self._flat(t.step_bytes, t.dtype) for t in signature.inputs]
        self._output_buffers = [self._flat(t.step_bytes, t.dtype) for t in signature.outputs]
        self._staged: OrderedDict[tuple[int, int], Staged] = OrderedDict()

    def _flat(self, step_bytes: int, dtype: str) -> np.ndarray[Any, Any]:
        count = self.max_batch * self.max_chunk * step_bytes // np.dtype(dtype).itemsize
        return np.zeros(count, dtype)

    def stage(self, rows: int, steps: int) -> Staged:
        """The buffers for a run of `rows` sessions of up to `steps` timesteps; padding rows are ready to run.

        The caller fills the first `rows` rows of `inputs`, `read`, `write` and `lengths`.
        """
        if self.fixed_shapes or self._fixed_batch:
            rows = next(size for size in self._batch_sizes if size >= rows)
            if self.fixed_shapes and self._chunk_sizes:
                steps = next(size for size in self._chunk_sizes if size >= steps)
        staged = self._staged.get((rows, steps))
        if staged is None:
            staged = self._staged[rows, steps] = self._bind(rows, steps)
            if len(self._staged) > _BINDINGS_KEPT:
                self._staged.popitem(last=False)
        return staged

    def pad(self, staged: Staged, used: int) -> None:
        """Make the rows from `used` on harmless: each reads the initial state and writes a scratch row of its own."""
        if used < staged.rows:
            staged.read[used:] = INITIAL_ROW
            staged.write[used:, 0] = self.pool.scratch_rows[used : staged.rows]
            staged.lengths[used:] = 1

    def _bind(self, rows: int, steps: int) -> Staged:
        staged = Staged(rows, steps)
        staged.binding = binding = self.session.io_binding()
        around = (rows, steps) if self.signature.has_time else (rows,)
        for tensors, buffers, views, bind in (
            (self.signature.inputs, self._input_buffers, staged.inputs, binding.bind_ortvalue_input),
            (self.signature.outputs, self._output_buffers, staged.outputs, binding.bind_ortvalue_output),
        ):
            for tensor, buffer in zip(tensors, buffers, strict=True):
                shape = (*around, *tensor.step_shape)
                array = buffer[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
                staged.values.append(array)
                views.append(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
                bind(tensor.name, ort.OrtValue.ortvalue_from_numpy(array))
        if self.signature.lengths:
            binding.bind_ortvalue_input(
                self.signature.lengths, ort.OrtValue.ortvalue_from_numpy(staged.lengths)
            )
        if self.signature.states:
            binding.bind_ortvalue_input(READ_SLOTS, ort.OrtValue.ortvalue_from_numpy(staged.read))
            binding.bind_ortvalue_input(WRITE_SLOTS, ort.OrtValue.ortvalue_from_numpy(staged.write))
            self.pool.bind(binding)
        return staged

    def run(self, staged: Staged) -> None:
        """Run the model on what is staged. Outputs are in `staged.outputs`, states in the pool.

        Raises:
            onnxruntime errors: the run failed. Where `commits_last`, no state was written.
        """
        self.session.run_with_iobinding(staged.binding)
        if not self.device.on_host:
            staged.binding.synchronize_outputs()

    def bad_rows(self, staged: Staged, used: int, *, allow_non_finite: bool) -> list[int]:
        """Which of the first `used` rows hold a NaN or an infinity (unless allowed), or a bool that is not 0 or 1."""
        bad: set[int] = set()
        for array in staged.values[: len(staged.inputs)]:
            if array.dtype.kind == "f" and not allow_non_finite:
                fine = np.isfinite(array[:used])
            elif array.dtype.kind == "b":
                fine = array[:used].view(np.uint8) <= 1
            else:
                continue
            if not fine.all():
                bad.update(np.flatnonzero(~fine.reshape(used, -1).all(axis=1)).tolist())
        return sorted(bad)

    def clear_inputs(self) -> None:
        """Zero the staging memory, so that no refused value stays behind in padding."""
        for buffer in self._input_buffers:
            buffer.fill(0)

    def warm_up(self) -> None:
        """Run every shape that traffic can meet first (all of them where shapes are fixed) on scratch rows."""
        chunks = self._chunk_sizes if self.fixed_shapes and self._chunk_sizes else (1,)
        batches = self._batch_sizes if self.fixed_shapes else (self._batch_sizes[0],)
        for steps in chunks:
            for rows in batches:
                staged = self.stage(rows, steps)
                self.pad(staged, 0)
                self.run(staged)
