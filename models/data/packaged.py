"""Data files inside installed PyPI packages. They are read in place; the package is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from streamcell.models.errors import DataError

from .sequences import Floats


def packaged_file(package: str, path: str, *, wanted_by: str) -> Path:
    """The file `path` of an installed package.

    Args:
        package: the distribution's name.
        path: from the folder that packages are installed in, "sktime/datasets/…".
        wanted_by: what needs it, for the error.

    Raises:
        DataError: the package is not installed, or does not have the file.
    """
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise DataError(f"{wanted_by} need the package {package}: pip install 'streamcell[data]'") from error
    file = Path(str(installed.locate_file(path)))
    if not file.is_file():
        raise DataError(f"{wanted_by}: {package} {installed.version} does not have the file {path}")
    return file


def source(package: str) -> str:
    """A package and its version, for provenance."""
    return f"{package} {metadata.version(package)}"


def one_hot(classes: Sequence[int], count: int) -> Floats:
    """float32[len(classes), count] of class numbers from 0."""
    return np.eye(count, dtype=np.float32)[np.asarray(classes, np.int64)]
