"""What made a file: library versions and the time."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata

LIBRARIES = ("streamcell", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "numpy")


def versions() -> dict[str, str]:
    """Distribution name → version, of the libraries that are installed, and Python's own."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
