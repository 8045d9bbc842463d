"""Clients in JavaScript and TypeScript, with their packages from npm's registry."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "build"


def installed(source: Path, npm: str) -> Path:
    """A copy of `source` with its packages, which are installed once for each version of its package.json."""
    folder = BUILD / source.name
    wanted = (source / "package.json").read_text()
    marker = folder / "installed.json"
    if not marker.is_file() or marker.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "package.json", folder)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)
        if done.returncode != 0:  # in CI a failure
            why = next(iter(done.stderr.splitlines()), "it does not say why")
            pytest.skip(f"npm could not install the client's packages from its registry: {why}")
        marker.write_text(wanted)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder
