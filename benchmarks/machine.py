"""Describes the machine and the versions that the figures were measured with."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from streamcell.service.build_info import COMPILED

_PACKAGES = ("streamcell", "grpcio", "protobuf", "numpy", "onnxruntime")


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def hardware() -> dict[str, str]:
    """Processor, cores, memory, whether it is virtual, and its present load average."""
    memory = _field("/proc/meminfo", "MemTotal").split()
    flags = _field("/proc/cpuinfo", "flags").split()
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[0]) / 2**20:.1f} GiB" if memory else "unknown",
        "virtual machine": "yes" if "hypervisor" in flags else "no",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    """Versions of the kernel, Python and the relevant packages, and whether the server's hot path is compiled."""
    found = {"Linux": platform.release(), "Python": platform.python_version()}
    found["hot path"] = "compiled" if COMPILED else "interpreted"
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # onnxruntime-gpu has the same module
            found[package] = "not installed under this name"
    return found


def today() -> str:
    """The date, as YYYY-MM-DD, in UTC."""
    return datetime.now(UTC).date().isoformat()
