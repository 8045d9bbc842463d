"""A server with two tenants, each with a model of its own beside one that both may use, and an operator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from streamcell.client.local_server import ServerProcess
from tests.support.parallel import made_once
from tests.support.resumable import save_sum
from tests.support.tokens import token_file
from tests.support.two_tenants import POLICY


@pytest.fixture(scope="session")
def models(models_dir: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    def make(folder: Path) -> None:
        save_sum(folder)
        for name in ("lstm", "mlp"):
            shutil.copy(models_dir / f"{name}.onnx", folder)

    return made_once(tmp_path_factory, pytestconfig, "tenants", make)


@pytest.fixture(scope="session")
def tenants(
    start_shared_server: Callable[..., ServerProcess], models: Path, tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    folder = tmp_path_factory.mktemp("access")
    tokens = token_file(
        folder / "tokens.toml",
        ("acme", "feed"),
        ("bank", "desk"),
        ("bank", "ops"),
        ("none", "lost"),
        operators=("ops",),
    )
    (folder / "policy.toml").write_text(POLICY)
    return start_shared_server(
        models,
        "--token-file",
        str(tokens),
        "--policy-file",
        str(folder / "policy.toml"),
        "--max-chunk",
        "4",
        "--metrics-open",
    )
