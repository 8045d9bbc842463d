"""What the package promises from outside: public names, imports that stay light, no accidental module."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FACES = ("card", "client", "export", "models", "proto", "service")


def python(code: str, folder: Path) -> str:
    """Run `code` in a fresh interpreter, in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(package: str, folder: Path) -> set[str]:
    """The top-level modules that importing `package` brings in."""
    code = f"import sys, json, {package}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(json.loads(python(code, folder)))


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_listed_once_and_is_there(face: str) -> None:
    package = importlib.import_module(f"streamcell.{face}")
    names = package.__all__
    assert len(names) == len(set(names))
    assert sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == list(names)
    for name in names:
        assert hasattr(package, name), name


@pytest.mark.parametrize(
    ("package", "without"),
    [
        ("streamcell.service", {"torch", "matplotlib", "music21"}),
        ("streamcell.client", {"torch", "onnx", "onnxruntime", "pydantic", "structlog", "prometheus_client"}),
        ("streamcell.cli", {"torch", "onnx", "onnxruntime", "grpc", "numpy", "matplotlib"}),
        ("streamcell.card", {"torch", "onnx", "onnxruntime", "grpc"}),
        (
            "streamcell.models",
            {"onnxruntime", "grpc", "music21", "matplotlib", "sktime", "sklearn", "pandas"},
        ),
    ],
)
def test_importing_a_part_does_not_import_what_it_must_not_need(
    package: str, without: set[str], tmp_path: Path
) -> None:
    assert imported(package, tmp_path) & without == set()


def test_the_service_imports_no_sibling_it_may_not(tmp_path: Path) -> None:
    code = (
        "import sys, json, pkgutil, importlib, streamcell.service as s;"
        "[importlib.import_module(f'streamcell.service.{m.name}') for m in pkgutil.iter_modules(s.__path__)];"
        "print(json.dumps(sorted({'.'.join(n.split('.')[:2]) for n in sys.modules if n.startswith('streamcell.')})))"
    )
    assert json.loads(python(code, tmp_path)) == ["streamcell.card", "streamcell.proto", "streamcell.service"]


def test_the_folders_are_not_modules_by_accident(tmp_path: Path) -> None:
    for name in ("models", "service", "export", "client", "card", "cli"):
        code = f"import importlib.util as u; print(u.find_spec({name!r}))"
        assert python(code, tmp_path) == "None", name


def test_every_module_stays_small() -> None:
    root = Path(__file__).parent.parent
    for folder in ("card", "cli", "client", "export", "models", "service", "benchmarks", "study"):
        for path in (root / folder).glob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 300, f"{path.relative_to(root)} has {lines} lines: split it by job"
