"""Models that are told apart by their answers, and servers under model control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_control import Model, Served, Start


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("made")
    return {
        "one": Model("lstm", 1, folder),
        "two": Model("lstm", 2, folder),
        "mlp": Model("mlp", 1, folder),
        "mlp2": Model("mlp", 2, folder),
    }


@pytest.fixture
def start(start_server: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts a server under explicit control over `tmp_path / "models"`."""
    folder = tmp_path / "models"
    folder.mkdir()
    started = []

    def go(*flags: str, control: str = "explicit") -> Served:
        started.append(Served(start_server(folder, "--model-control", control, *flags), folder))
        return started[-1]

    yield go
    for served in started:
        served.close()
