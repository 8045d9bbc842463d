"""What the tests do on a machine that lacks a program, and in which order they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.slow
def test_long(): pass

def test_alerts(program): program("promtool")

@pytest.fixture
def certificate(program): return program("openssl")

def test_tls(certificate): pass

def test_tls_again(certificate): pass

@pytest.mark.xfail(strict=True)
def test_known(): assert False

def test_short(): pass
"""

# What conftest.py imports for its servers takes seconds, and no test here starts one.
STAND_INS = """
import sys
from unittest.mock import MagicMock
for name in ("torch", "streamcell.client.local_server", "streamcell.export", "streamcell.models"):
    sys.modules[name] = MagicMock()
"""


def run_tests(folder: Path, tests: str = TESTS, **environment: str) -> tuple[int, str]:
    """Exit code and output of pytest under this project's settings, where no program is on the path."""
    shutil.copytree(ROOT / "tests" / "support", folder / "tests" / "support")
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "stand_ins.py").write_text(STAND_INS)
    (folder / "tests" / "test_some.py").write_text(tests)
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "stand_ins",
            "-p",
            "no:cacheprovider",
            "tests/test_some.py",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, "PATH": str(folder), **environment},
    )
    return done.returncode, done.stdout + done.stderr


def test_what_lacks_a_program_is_skipped_and_the_last_lines_say_how_to_get_it(tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, CI="false")
    assert code == 0, said
    *_, section, twice, once, ci, count = said.strip().splitlines()
    assert re.fullmatch(r"!+ NOT TESTED !+", section)
    assert twice == "2 tests skipped: openssl is not installed: apt-get install openssl"
    assert once == "1 test skipped: promtool is not installed: apt-get install prometheus"
    assert "CI=1" in ci
    assert "2 passed, 3 skipped, 1 xfailed" in count
    # A training demo runs last; the others stay in their order.
    order = re.findall(r"^tests/test_some.py::(\w+) ", said, re.MULTILINE)
    assert order == ["test_alerts", "test_tls", "test_tls_again", "test_known", "test_short", "test_long"]


def test_in_ci_a_skipped_test_is_a_failure(tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, CI="1")
    assert code == 1, said
    assert "NOT TESTED" not in said
    assert "promtool is not installed: apt-get install prometheus\nCI is set" in said
    # The two that need a certificate fail as their fixture is made, so pytest calls them errors.
    assert re.search(r"1 failed, 2 passed, 1 xfailed, 2 errors", said)


def test_in_ci_a_module_that_skips_itself_is_a_failure(tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, "import pytest\npytest.importorskip('no_such_module')\n", CI="true")
    assert code != 0
    assert "CI is set, where no test may be skipped" in said
