"""The blocking client's modules that are made from the asyncio client's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "client" / "generate.py"


def test_the_blocking_twins_are_what_the_asyncio_modules_give() -> None:
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
