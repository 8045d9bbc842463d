"""Copies through the CUDA runtime's C interface, with a stand-in for the runtime that works on the host's memory."""

from __future__ import annotations

import ctypes
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamcell.benchmarks.parity import compare, engine
from streamcell.service.engine.cuda_copies import CudaCopies, CudaError
from streamcell.service.engine.device import Device
from streamcell.service.repository.model_file import open_model

STREAM = 0x5EED
POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t


class Runtime(SimpleNamespace):
    """Functions of C type, so that arguments pass through ctypes as they would to the library."""

    def __init__(self, cards: int = 1) -> None:
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, Any] = {}
        self.cards = cards
        for name, kinds in {
            "cudaSetDevice": (ctypes.c_int,),
            "cudaStreamCreateWithFlags": (ctypes.POINTER(POINTER), ctypes.c_uint),
            "cudaStreamSynchronize": (POINTER,),
            "cudaStreamDestroy": (POINTER,),
            "cudaHostAlloc": (ctypes.POINTER(POINTER), SIZE, ctypes.c_uint),
            "cudaFreeHost": (POINTER,),
            "cudaMemcpyAsync": (POINTER, POINTER, SIZE, ctypes.c_int, POINTER),
        }.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(self._counted(name)))
        self.cudaGetErrorString = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(self._text)

    def _counted(self, name: str) -> Any:
        function = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            return int(function(*arguments))

        return call

    def _text(self, code: int) -> int:
        self._kept = ctypes.create_string_buffer(b"invalid device ordinal")
        return ctypes.addressof(self._kept)

    def _cudaSetDevice(self, index: int) -> int:  # noqa: N802
        return 0 if index < self.cards else 101

    def _cudaStreamCreateWithFlags(self, made: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1
        made[0] = STREAM
        return 0

    def _cudaStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        return int(stream != STREAM)

    _cudaStreamDestroy = _cudaStreamSynchronize  # noqa: N815

    def _cudaHostAlloc(self, made: Any, size: int, flags: int) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(b"\xff" * size, size)
        made[0] = ctypes.addressof(memory)
        self.memory[ctypes.addressof(memory)] = memory
        return 0

    def _cudaFreeHost(self, pointer: int) -> int:  # noqa: N802
        return 0 if self.memory.pop(pointer, None) is not None else 1

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> int:  # noqa: N802
        assert kind in (1, 2)
        assert stream == STREAM
        ctypes.memmove(to, source, size)
        return 0


def test_bytes_go_in_and_come_out_and_all_is_given_back() -> None:
    runtime = Runtime()
    copies = CudaCopies(runtime, 0)
    assert copies.stream == STREAM
    host, device = copies.buffer(64), np.zeros(64, np.uint8)
    assert not host.any()
    host[:] = np.arange(64)
    copies.copy_in(device.ctypes.data, host.ctypes.data, 64)
    host[:] = 0
    copies.copy_out(host.ctypes.data, device.ctypes.data, 32)
    assert host.tolist() == [*range(32), *[0] * 32]
    assert runtime.calls["cudaStreamSynchronize"] == 1
    copies.close()
    copies.close()
    assert not runtime.memory
    assert runtime.calls["cudaStreamDestroy"] == 1


def test_what_the_runtime_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(CudaError, match="cudaSetDevice failed: invalid device ordinal"):
        CudaCopies(Runtime(cards=1), 1)
    copies = CudaCopies(Runtime(), 0)
    copies.stream = 7
    with pytest.raises(CudaError, match="cudaStreamSynchronize failed"):
        copies.wait()


def test_an_engine_makes_two_copies_a_run(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(Device, "copies", lambda self: CudaCopies(runtime, 0))
    file = open_model(models_dir / "lstm.onnx", "lstm")
    one, other = engine(file, Device()), engine(file, Device(apart=True), cuda_graphs=True)
    runtime.calls.clear()
    found = compare(one, other, runs=10)
    assert found.output_error < 1e-5
    assert runtime.calls == {"cudaMemcpyAsync": 20, "cudaStreamSynchronize": 10}
    other.close()
    assert not runtime.memory
