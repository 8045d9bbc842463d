"""PyTorch's exporter reads the source of its library of 500 operators for each file: a third of an export."""

from __future__ import annotations

import functools
import sys


def read_once() -> None:
    """Keep what the exporter reads, if it has been imported: from here on it reads once a process."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("onnxscript._framework_apis."):
            read = getattr(module, "get_torchlib_ops", None)
            if read is not None and not hasattr(read, "cache_info"):
                module.get_torchlib_ops = _kept(read)


_kept = functools.cache(functools.cache)  # one cache for the modules that pass one function on
