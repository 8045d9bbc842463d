"""The compiled hot path: what is listed is compiled and nothing else, and a server tells which build it is."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.service.build_info import COMPILED

ROOT = Path(__file__).parents[2]


def folder(name: str) -> ModuleType:
    """A module of `compiled/`, which is no package: the build alone imports it."""
    path = ROOT / "compiled" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"compiled_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed() -> list[str]:
    modules = folder("modules").compiled_modules(ROOT)
    return [f"streamcell.service.{path[:-3].replace('/', '.')}" for path in modules]


def test_the_tests_run_on_the_build_that_they_are_told() -> None:
    assert bool(os.environ.get("STREAMCELL_COMPILED")) == COMPILED


def test_what_is_listed_is_compiled_all_or_nothing() -> None:
    names = listed()
    assert len(names) > 40
    native = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    for name in names:
        file = importlib.import_module(name).__file__
        assert file is not None
        assert file.endswith(native if COMPILED else ".py"), name


def test_every_module_of_the_compiled_folders_is_listed_once_and_the_others_have_a_reason() -> None:
    modules = folder("modules")
    assert modules.forgotten(ROOT) == set()
    assert not {path[:-3] for path in modules.compiled_modules(ROOT)} & modules.INTERPRETED.keys()
    for path, reason in modules.INTERPRETED.items():
        assert reason
        file = importlib.import_module(f"streamcell.service.{path.replace('/', '.')}").__file__
        assert file is not None
        assert file.endswith(".py")


def test_a_server_tells_in_its_metrics_and_its_log_which_build_it_is(served: ServerProcess) -> None:
    told = str(COMPILED).lower()
    assert served.metric("streamcell_build_info", compiled=told) == 1
    (line,) = [entry for entry in served.log if entry["event"] == "serving"]
    assert line["compiled"] is COMPILED


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`compiled/backend.py` in an empty project, with no choice made and no C compiler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMCELL_COMPILE", raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    return folder("backend")


def project(where: Path, setup: str) -> None:
    """A project whose setup.py is `setup` with the real one's beginning."""
    (where / "pyproject.toml").write_text(
        '[project]\nname = "some"\nversion = "1"\ndependencies = ["a>=1"]\n[project.optional-dependencies]\n'
        'graph = ["b"]\nruntime = ["some[graph]", "streamcell[graph]", "c"]\ncompile = ["mypy"]\n'
        "[tool.setuptools]\npackages = []\n"
    )
    (where / "setup.py").write_text(setup)


TRIES = (
    "import os\nfrom setuptools import setup\n"
    "if os.environ.get('STREAMCELL_COMPILE_NOW') == '1':\n    raise RuntimeError('no header Python.h')\nsetup()\n"
)


def build(backend: ModuleType, where: Path) -> str:
    out = where / "out"
    out.mkdir(exist_ok=True)
    name: str = backend.build_wheel(str(out))
    return name


def test_without_a_compiler_a_wheel_is_interpreted_and_the_build_says_so(
    backend: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, TRIES)
    assert build(backend, tmp_path) == "some-1-py3-none-any.whl"
    assert "no C compiler" in capfd.readouterr().err
    assert "mypy" not in backend.get_requires_for_build_wheel()


def test_a_compilation_that_fails_leaves_an_interpreted_wheel_unless_it_was_demanded(
    backend: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    project(tmp_path, TRIES)
    monkeypatch.setenv("CC", sys.executable)  # something that is there
    assert build(backend, tmp_path) == "some-1-py3-none-any.whl"
    said = capfd.readouterr().err
    assert "no header Python.h" in said
    assert "interpreted" in said
    assert {"a>=1", "b", "c", "mypy"} <= set(backend.get_requires_for_build_wheel())
    monkeypatch.setenv("STREAMCELL_COMPILE", "1")
    with pytest.raises(RuntimeError, match=r"no header Python\.h"):
        build(backend, tmp_path)
    monkeypatch.setenv("STREAMCELL_COMPILE", "0")
    assert build(backend, tmp_path) == "some-1-py3-none-any.whl"
    monkeypatch.setenv("STREAMCELL_COMPILE", "yes")
    with pytest.raises(SystemExit, match="expected 0, 1 or nothing, got 'yes'"):
        build(backend, tmp_path)


SOURCES: dict[str, str] = {
    "a generator that would become a list": "def f(x: list[int]) -> list[int]:\n    return [*(y for y in x)]\n",
    "an attribute that is None until a call sets it": '"""Hot."""\nclass A:\n    def __init__(self) -> None:\n'
    "        self.x: list[int] | None = None\n\n    def fill(self) -> None:\n        self.x = []\n\n"
    "    def f(self) -> bool:\n        self.x = None\n        self.fill()\n        return self.x is None\n",
    "a wrong type": "def f(x: int) -> str:\n    return x\n",
}


@pytest.mark.parametrize("what", SOURCES)
def test_what_mypyc_warns_of_is_not_compiled(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = folder("modules")
    for name in (*modules._PACKAGES, "package"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.mypy]\nstrict = true\nexplicit_package_bases = true\nnamespace_packages = true\n"
    )
    (tmp_path / "service" / "hot.py").write_text(SOURCES[what])
    monkeypatch.setattr(modules, "COMPILED", {".": ("hot",)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(modules.CompileError, match=r"hot\.py:2: (warning|error)|A\.f: .*self\.x"):
        modules.extensions(tmp_path)
