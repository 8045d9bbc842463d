"""The state pool: one row a session in every state tensor, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from streamcell.service.durability.journal import Journal
from streamcell.service.graph.pooled import PoolTensor
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.load_errors import DeviceError

from .card_lock import alone
from .cuda_copies import Copies
from .device import Device
from .spilling import Spilling, mover
from .staging import Staged

# Makes a journal, given the pool's first slot, and dtype and shape of one row of each state.
MakeJournal: TypeAlias = Callable[[int, Sequence[tuple[np.dtype[Any], tuple[int, ...]]]], Journal]


class StatePool:
    """The device tensors that hold every session's state, each of shape [rows, *state_shape].

    Row 0 is the initial state, the next `scratch` rows are for padding, the rest are slots. On the CPU the
    tensors are zero pages until a session writes them, so unused slots take no memory.

    With a journal, on the CPU they are the file's pages. On a card the file has a copy of each row: a run outputs the
    rows that it writes, and they are stored before any reply of the run is sent.

    Attributes:
        places: the numbers that sessions may have as slots are below this.
        journal: the file that holds the tensors, if sessions outlive the process.
        spilling: says in which row a session is, if there are fewer rows than sessions; None: its slot is its row.
    """

    def __init__(
        self,
        tensors: Sequence[PoolTensor],
        *,
        slots: int,
        scratch: int,
        device: Device,
        rows: int | None = None,
        make_journal: MakeJournal | None = None,
    ) -> None:
        """Make the tensors.

        Args:
            tensors: one for each state.
            slots: sessions that may have a state.
            scratch: rows for padding.
            device: where the tensors are.
            rows: rows that sessions share, if they are fewer; None: each has its own, or two if there is a journal.
            make_journal: makes the file that holds them, if sessions outlive the process.
        """
        self.first_slot = 1 + scratch
        self.scratch_rows = np.arange(1, 1 + scratch, dtype=np.int64)
        self._tensors = tuple(tensors)
        self._device = device
        self.journal: Journal | None = None
        self.spilling: Spilling | None = None
        self.places = self.first_slot + slots
        self.rows = self.first_slot + slots
        if slots and make_journal is not None:
            shapes = [(tensor.dtype, tensor.shape) for tensor in self._tensors]
            self.journal = make_journal(self.first_slot, shapes)
            self.rows = self.journal.counts.rows
        numbers = self.rows - self.first_slot  # that rows of sessions have
        if rows is not None:
            self.rows = self.first_slot + rows
        if self.journal is not None and rows is None:
            arrays = self.journal.states
        else:
            arrays = [np.zeros((self.rows, *tensor.shape), tensor.dtype) for tensor in self._tensors]
        for array, tensor in zip(arrays, self._tensors, strict=True):
            array[INITIAL_ROW] = tensor.initial
        self._values: list[ort.OrtValue] = [device.place(array) for array in arrays]
        # The address and the bytes of a row of each tensor.
        self._rows = [
            (value.data_ptr(), array[0].nbytes) for value, array in zip(self._values, arrays, strict=True)
        ]
        self._copies: Copies | None = None  # made when something is copied
        # Where the file has copies of the tensors.
        self._file: Sequence[np.ndarray[Any, Any]] = ()
        if self.journal is not None and not device.on_host:
            self._file = self.journal.states
        elif self.journal is not None and any(
            value.data_ptr() != array.ctypes.data for value, array in zip(self._values, arrays, strict=True)
        ):
            raise DeviceError(
                f"device {device}: ONNX Runtime does not run in a file's pages; serve without a journal"
            )
        if rows is not None:
            kept = [state[self.first_slot :] for state in self._file]
            moves = mover(device, arrays, self._values, numbers, kept)
            self.spilling = Spilling(moves, first=self.first_slot, rows=rows, slots=slots, numbers=numbers)

    @property
    def tensors(self) -> int:
        """How many there are."""
        return len(self._tensors)

    @property
    def slot_bytes(self) -> int:
        """Bytes that one slot takes."""
        return sum(size for _, size in self._rows)

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind each tensor as the graph's pool input and pool output: the same memory, updated in place."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            binding.bind_ortvalue_input(tensor.input, value)
            binding.bind_ortvalue_output(tensor.output, value)

    def keeping(self, staged: Staged, go: Callable[[], None]) -> Callable[[], None]:
        """`go`, which runs a graph on `staged`; then the rows that it has written are stored in the file, if needed."""
        if not self._file:
            return go
        rows = staged.write[:, 0]
        stores = list(zip(self._file, staged.written, strict=True))

        spilling = self.spilling

        def kept() -> None:
            go()
            slots = rows if spilling is None else spilling.slots_of(rows)
            for state, written in stores:
                state[slots] = written

        return kept

    def recovered(self) -> None:
        """The journal has taken over rows of an earlier process: bring them to the device. Nothing may run."""
        if self.spilling is not None:
            self.spilling.recovered()
            return
        if not self._file:
            return
        with self._copying() as copies:
            for (address, _), state in zip(self._rows, self._file, strict=True):
                copies.copy_in(address, state.ctypes.data, state.nbytes)
            copies.wait()

    def read(self, slot: int) -> tuple[np.ndarray[Any, Any], ...]:
        """A copy of one row of every state tensor, [*shape] each. For the engine thread, or while nothing runs.

        `slot` may also be a row that no session has.
        """
        if self.spilling is not None:
            found = self.spilling.read(slot)
            if not isinstance(found, int):
                return found
            slot = found
        rows = tuple(np.empty(tensor.shape, tensor.dtype) for tensor in self._tensors)
        with self._copying() as copies:
            for array, (address, size) in zip(rows, self._rows, strict=True):
                copies.copy_out(array.ctypes.data, address + slot * size, size)
        return rows

    def write(self, slot: int, values: Sequence[bytes]) -> None:
        """Store one row of every state tensor, as `read` returns it. For the engine thread.

        Raises:
            ValueError: a value has another size than the row.
            EngineFailed: a session could not leave the pool to make room.
        """
        if [len(value) for value in values] != [size for _, size in self._rows]:
            raise ValueError(f"values of {list(map(len, values))} bytes for rows of {self._rows}")
        kept = [np.frombuffer(value, np.uint8) for value in values]
        _, row = self._rows_of(INITIAL_ROW, slot)
        with self._copying() as copies:
            for array, (address, size) in zip(kept, self._rows, strict=True):
                copies.copy_in(address + row * size, array.ctypes.data, size)
            copies.wait()
        for state, array in zip(self._file, kept, strict=False):
            state[slot] = array.view(state.dtype).reshape(state.shape[1:])

    def copy(self, source: int, target: int) -> None:
        """Copy one slot's row of every state tensor to another's, on the device. For the engine thread.

        Raises:
            EngineFailed: a session could not be brought back to the pool, or leave it to make room.
        """
        read, write = self._rows_of(source, target)
        with self._copying() as copies:
            for address, size in self._rows:
                copies.copy_within(address + write * size, address + read * size, size)
            copies.wait()
        for state in self._file:
            state[target] = state[source]

    def _rows_of(self, read: int, write: int) -> tuple[int, int]:
        """The rows of two slots, the first of which is read; sessions that are not in the pool come back to it."""
        if self.spilling is None:
            return read, write
        reads, writes = np.array([read]), np.array([write])
        self.spilling.place(reads, writes)
        return int(reads[0]), int(writes[0])

    @contextmanager
    def _copying(self) -> Iterator[Copies]:
        with alone(self._device):
            if self._copies is None:
                self._copies = self._device.copies()
            yield self._copies

    def close(self) -> None:
        """Give back what copies rows. It is made again if a row is copied."""
        if self.spilling is not None:
            self.spilling.close()
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close()
