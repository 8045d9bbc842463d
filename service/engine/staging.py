"""The memory of a run's inputs and outputs, in the host's and in the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from streamcell.card import OpenInput, Signature, Tensor
from streamcell.service.graph.feeds import kept
from streamcell.service.graph.pooled import READ_SLOTS, WRITE_SLOTS, PoolTensor, initial_value, open_port

from .device import Device

Array = np.ndarray[Any, Any]
# What the CUDA runtime aligns its own allocations to, bytes.
_ALIGNMENT = 256


class Staged:
    """The buffers of one shape of run: `rows` sessions of up to `steps` timesteps each.

    `inputs` and `outputs` are byte views of [rows, steps, *step_shape] tensors in C order, `values` the same as
    arrays; `read` int64[rows] and `write` int64[rows, 1] are the pool rows to gather from and to scatter to;
    `lengths` int32[rows]; `given` has uint8[rows, bytes] for each open input, read in rows that read the initial state.
    `written` has dtype[rows, *shape] for each state, the rows that the run has written, if the graph gives them out.
    `go` runs the model on them.
    """

    __slots__ = (
        "given", "go", "inputs", "lengths", "outputs", "read", "rows", "steps", "values", "write", "written",
    )  # fmt: skip

    def __init__(self, rows: int, steps: int) -> None:
        self.rows = rows
        self.steps = steps
        self.go: Callable[[], None]
        self.values: list[Array] = []
        self.inputs: list[memoryview] = []
        self.outputs: list[memoryview] = []
        self.read: Array
        self.write: Array
        self.lengths: Array
        self.given: list[Array] = []
        self.written: list[Array] = []


class Staging(Protocol):
    """Makes the buffers of runs and binds sessions to them."""

    def buffers(self, rows: int, steps: int) -> Staged:
        """The buffers for runs of that shape, without `go`."""

    def bind(self, staged: Staged, session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        """Bind all but the pools."""

    def runner(
        self,
        staged: Staged,
        session: ort.InferenceSession,
        binding: ort.IOBinding,
        options: ort.RunOptions | None,
    ) -> Callable[[], None]:
        """A function that copies in, if there is anything to copy, runs, and copies out."""

    def clear(self) -> None:
        """Zero all inputs."""

    def close(self) -> None:
        """Give the memory back. No session that was bound to it may be left."""


def staging(
    signature: Signature,
    device: Device,
    most_rows: int,
    most_steps: int,
    written: Sequence[PoolTensor] = (),
) -> Staging:
    """Staging for runs of up to that size on `device`; `written`: the pools whose new rows come with the outputs."""
    if device.on_host:
        return HostStaging(signature, device, most_rows, most_steps)
    return CardStaging(signature, device, most_rows, most_steps, written)


def _shape(signature: Signature, tensor: Tensor, rows: int, steps: int) -> tuple[int, ...]:
    return (rows, steps, *tensor.step_shape) if signature.has_time else (rows, *tensor.step_shape)


def _is_host(memory: str) -> bool:
    """True if ONNX Runtime's name of a memory means the host's."""
    name = memory.lower()
    return name.startswith("cpu") or "pinned" in name or "host" in name


def _view(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def steps_of(view: memoryview, step_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A staging buffer as uint8[steps, step_bytes]."""
    return np.frombuffer(view, np.uint8).reshape(-1, step_bytes)


def _bytes_of(array: Array, rows: int) -> Array:
    """The values of an open input as uint8[rows, bytes]."""
    return array.reshape(-1).view(np.uint8).reshape(rows, -1)


def resting(tensor: Tensor) -> Array:
    """The value of a step that no client has sent: zeros, or the nearest valid index of the model's tables."""
    if isinstance(tensor, OpenInput) and tensor.default is not None:
        return initial_value(kept(tensor))
    low, high = zip(*tensor.index_ranges or [(0, 0)], strict=True)
    nearest = np.clip(0, np.array(low, object), np.array(high, object)).astype(tensor.dtype)
    return nearest.reshape(tensor.step_shape) if len(low) > 1 else np.full(tensor.step_shape, nearest[0])


class HostStaging:
    """The model reads and writes the buffers themselves.

    One flat buffer an input or output, sized for the largest run; each shape of run is a view of its front, so
    memory does not grow with the number of shapes seen.
    """

    def __init__(self, signature: Signature, device: Device, most_rows: int, most_steps: int) -> None:
        self._signature = signature
        self._most = most_rows * most_steps
        self._inputs = [self._flat(tensor) for tensor in signature.inputs]
        self._outputs = [self._flat(tensor) for tensor in signature.outputs]
        self._resting = [resting(tensor) for tensor in signature.inputs]
        if any(step.any() for step in self._resting):
            self.clear()
        self._given = [
            np.broadcast_to(resting(value), (most_rows, *value.step_shape)).copy()
            for value in signature.open_inputs
        ]

    def _flat(self, tensor: Tensor) -> Array:
        return np.zeros(self._most * tensor.step_bytes // np.dtype(tensor.dtype).itemsize, tensor.dtype)

    def buffers(self, rows: int, steps: int) -> Staged:
        """See `Staging`."""
        signature = self._signature
        staged = Staged(rows, steps)
        staged.read, staged.write = np.zeros(rows, np.int64), np.zeros((rows, 1), np.int64)
        staged.lengths = np.full(rows, steps, np.int32)
        for tensors, buffers, views in (
            (signature.inputs, self._inputs, staged.inputs),
            (signature.outputs, self._outputs, staged.outputs),
        ):
            for tensor, buffer in zip(tensors, buffers, strict=True):
                shape = _shape(signature, tensor, rows, steps)
                array = buffer[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
                staged.values.append(array)
                views.append(_view(array))
        staged.given = [_bytes_of(value[:rows], rows) for value in self._given]
        return staged

    def bind(self, staged: Staged, session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        """See `Staging`."""
        signature = self._signature
        of = ort.OrtValue.ortvalue_from_numpy
        inputs = len(signature.inputs)
        for tensor, array in zip(signature.inputs, staged.values[:inputs], strict=True):
            binding.bind_ortvalue_input(tensor.name, of(array))
        for tensor, array in zip(signature.outputs, staged.values[inputs:], strict=True):
            binding.bind_ortvalue_output(tensor.name, of(array))
        if signature.lengths:
            binding.bind_ortvalue_input(signature.lengths, of(staged.lengths))
        if signature.states:
            binding.bind_ortvalue_input(READ_SLOTS, of(staged.read))
            binding.bind_ortvalue_input(WRITE_SLOTS, of(staged.write))
        for tensor, given in zip(signature.open_inputs, self._given, strict=True):
            binding.bind_ortvalue_input(open_port(tensor.name), of(given[: staged.rows]))

    def runner(
        self,
        staged: Staged,
        session: ort.InferenceSession,
        binding: ort.IOBinding,
        options: ort.RunOptions | None,
    ) -> Callable[[], None]:
        """See `Staging`."""
        run = session.run_with_iobinding

        def go() -> None:
            run(binding, options)

        return go

    def clear(self) -> None:
        """See `Staging`."""
        for buffer, step in zip(self._inputs, self._resting, strict=True):
            buffer.reshape(-1, *step.shape)[...] = step

    def close(self) -> None:
        """See `Staging`."""


class CardStaging:
    """Host buffers that are copied to fixed addresses on the device and back, one copy each way a run.

    On both sides one block of memory has all inputs, and another all outputs; each shape of run packs its
    tensors from the front, so memory does not grow with the number of shapes seen. CUDA graphs need the fixed
    addresses. ONNX Runtime copies a value that is bound on the wrong side once, when it is bound, and never again:
    an input that a session wants on the host (an LSTM's lengths) is bound to the host buffer.
    """

    def __init__(
        self,
        signature: Signature,
        device: Device,
        most_rows: int,
        most_steps: int,
        written: Sequence[PoolTensor] = (),
    ) -> None:
        """`written`: the pools whose new rows come out with the outputs."""
        self._signature = signature
        self._device = device
        self._written = written
        self.copies = device.copies()
        sizes = [self._packed(most_rows, most_steps, side)[1] for side in (0, 1)]
        self._host = [self.copies.buffer(size) for size in sizes]
        self._on_device = [device.place(np.zeros(size, np.uint8)) for size in sizes]

    def _tensors(
        self, rows: int, steps: int, side: int
    ) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
        signature = self._signature
        for tensor in (signature.inputs, signature.outputs)[side]:
            yield tensor.name, np.dtype(tensor.dtype), _shape(signature, tensor, rows, steps)
        if side == 1:
            for pool in self._written:
                yield pool.written, pool.dtype, (rows, *pool.shape)
        if side == 0:
            yield signature.lengths or "", np.dtype(np.int32), (rows,)
            yield READ_SLOTS, np.dtype(np.int64), (rows,)
            yield WRITE_SLOTS, np.dtype(np.int64), (rows, 1)
            for value in signature.open_inputs:
                yield open_port(value.name), np.dtype(value.dtype), (rows, *value.step_shape)

    def _packed(
        self, rows: int, steps: int, side: int
    ) -> tuple[list[tuple[str, np.dtype[Any], tuple[int, ...], int]], int]:
        """Name, dtype, shape and first byte of each tensor that goes in (side 0) or comes out (1); the end of all."""
        end = 0
        places = []
        for name, dtype, shape in self._tensors(rows, steps, side):
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            places.append((name, dtype, shape, start))
            end = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return places, end

    def buffers(self, rows: int, steps: int) -> Staged:
        """See `Staging`."""
        staged = Staged(rows, steps)
        arrays: list[list[Array]] = [[], []]
        for side, host in enumerate(self._host):
            for _, dtype, shape, start in self._packed(rows, steps, side)[0]:
                size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                arrays[side].append(host[start : start + size].view(dtype).reshape(shape))
        count = len(self._signature.inputs)
        inputs, (staged.lengths, staged.read, staged.write, *given) = arrays[0][:count], arrays[0][count:]
        staged.given = [_bytes_of(array, rows) for array in given]
        count = len(self._signature.outputs)
        outputs, staged.written = arrays[1][:count], arrays[1][count:]
        staged.values = [*inputs, *outputs]
        staged.inputs, staged.outputs = [_view(a) for a in inputs], [_view(a) for a in outputs]
        return staged

    def bind(self, staged: Staged, session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        """See `Staging`."""
        device = self._device
        wanted = {node.name: info.name for node, info in zip(
            session.get_inputs(), session.get_input_memory_infos(), strict=True
        )}  # fmt: skip
        for side, bind in enumerate((binding.bind_input, binding.bind_output)):
            base = self._on_device[side].data_ptr()
            for name, dtype, shape, start in self._packed(staged.rows, staged.steps, side)[0]:
                if side == 0 and name not in wanted:
                    continue
                if side == 0 and device.kind != "cpu" and _is_host(wanted[name]):
                    bind(name, "cpu", 0, dtype, shape, self._host[0].ctypes.data + start)
                else:
                    bind(name, device.kind, device.index, dtype, shape, base + start)

    def runner(
        self,
        staged: Staged,
        session: ort.InferenceSession,
        binding: ort.IOBinding,
        options: ort.RunOptions | None,
    ) -> Callable[[], None]:
        """See `Staging`."""
        host_in, host_out = (host.ctypes.data for host in self._host)
        device_in, device_out = (value.data_ptr() for value in self._on_device)
        size_in, size_out = (self._packed(staged.rows, staged.steps, side)[1] for side in (0, 1))
        run, copy_in, copy_out = session.run_with_iobinding, self.copies.copy_in, self.copies.copy_out

        def go() -> None:
            copy_in(device_in, host_in, size_in)
            run(binding, options)
            copy_out(host_out, device_out, size_out)

        return go

    def clear(self) -> None:
        """See `Staging`."""
        self._host[0].fill(0)

    def close(self) -> None:
        """See `Staging`."""
        self._host.clear()
        self.copies.close()
