"""Real replicas, a real store and a real proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chain import save_chain
from tests.support.parallel import made_once


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder with the model `chain`."""
    return made_once(tmp_path_factory, pytestconfig, "chain", save_chain)
