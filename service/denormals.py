"""Has the processor take numbers that are too small for their type's full precision (denormals) for zero.

A state that decays ends among them after some hundred steps and stays there, and a processor can take many times as
long for each. ONNX Runtime's `session.set_denormal_as_zero` reaches the threads of its pools, and the one that makes a
process's first session; runs on one thread are computed by their callers, the serving and the engine threads.
"""

from __future__ import annotations

import ctypes
import platform

import numpy as np

# x86-64's fenv_t in glibc: its bytes, where MXCSR stands in it, and the bits for results (FZ) and operands (DAZ).
_SIZE, _MXCSR = 32, 28
_FLUSH = 0x8040


def flush_denormals() -> bool:
    """Have this thread, and those that it starts from now on, take denormal numbers for zero.

    For a process of the server's own, first of all: Python's floats follow too.

    Returns:
        False on processors other than x86-64, and with C libraries other than glibc.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # numpy looks for each type's smallest number once, and would warn that it is zero.
    for kind in (np.float16, np.float32, np.float64):
        np.finfo(kind).smallest_subnormal  # noqa: B018
    environment = (ctypes.c_ubyte * _SIZE)()
    try:
        library = ctypes.CDLL("libm.so.6")
        if library.fegetenv(environment):
            return False
        bits = ctypes.c_uint32.from_buffer(environment, _MXCSR)
        bits.value |= _FLUSH
        return bool(library.fesetenv(environment) == 0)
    except (OSError, AttributeError):
        return False
