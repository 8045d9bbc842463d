"""What `pip install streamcell[serve]` brings is enough to serve an exported model: nothing else is there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import streamcell.cli
from streamcell.client import connect
from streamcell.client.local_server import ServerProcess


def required(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> None:
    """Add to `seen` every distribution that `name[extras]` needs."""
    if extras <= seen.get(name, frozenset()) and name in seen:
        return
    seen[name] = seen.get(name, frozenset()) | extras
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        ):
            required(requirement.name.lower(), frozenset(requirement.extras), seen)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with links to this package and to what its extra `serve` requires."""
    folder = tmp_path_factory.mktemp("serve")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    names: dict[str, frozenset[str]] = {}
    required("streamcell", frozenset({"serve"}), names)
    for name in names:
        if name == "streamcell":
            continue
        distribution = metadata.distribution(name)
        for top in {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (site / "streamcell").mkdir()
    for part in Path(streamcell.cli.__file__).resolve().parents[1].glob("*/__init__.py"):
        if part.parent.name != "tests":
            (site / "streamcell" / part.parent.name).symlink_to(part.parent)
    return folder / "bin" / "python"


def test_a_serve_only_install_serves_what_was_exported(
    python: Path, models_dir: Path, modules: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "executable", str(python))
    x = np.random.default_rng(2).standard_normal((5, 3)).astype(np.float32)
    with (
        ServerProcess(models_dir) as server,
        connect(server.target) as client,
        client.session("lstm") as session,
    ):
        served = session.run(x)
    with torch.no_grad():
        expected: Any = modules["lstm"](torch.from_numpy(x)[None])[0][0].numpy()
    np.testing.assert_allclose(served, expected, atol=1e-5)


@pytest.mark.parametrize("module", ["torch", "onnxscript", "matplotlib", "music21", "pytest"])
def test_it_has_nothing_of_training_or_testing(python: Path, module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", f"import {module}"], env=environment, capture_output=True, text=True)
    assert f"No module named '{module}'" in done.stderr
