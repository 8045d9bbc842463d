"""Letters to phonemes on a few hundred short words: a trained run, exported, served."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.client import Client, connect
from streamcell.client.local_server import ServerProcess
from streamcell.export import export_run
from streamcell.models.data import registry
from streamcell.models.data.g2p import Dictionary, load_dictionary
from tests.support.parallel import made_once


@pytest.fixture(scope="session")
def dictionary() -> Dictionary:
    return load_dictionary()


@pytest.fixture(scope="session")
def few(dictionary: Dictionary) -> Dictionary:
    """Short words of the dictionary, a few hundred."""
    short = {word: said for word, said in dictionary.words.items() if word.isalpha() and len(word) <= 3}
    return Dictionary(dict(itertools.islice(short.items(), 600)), dictionary.about)


@pytest.fixture(scope="session")
def trained(few: Dictionary, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A run on a few hundred short words, long enough to have learned some."""
    return made_once(tmp_path_factory, pytestconfig, "g2p", lambda folder: train(few, folder / "run")) / "run"


@pytest.fixture(scope="session")
def aligned(few: Dictionary, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The same with a stack, so that a symbol is what one letter says."""
    made = made_once(
        tmp_path_factory,
        pytestconfig,
        "g2p-aligned",
        lambda folder: train(few, folder / "run", "--set", "stack=3", "--epochs", "12"),
    )
    return made / "run"


def train(few: Dictionary, out: Path, *more: str) -> None:
    arguments = ["train", "g2p", "--out", str(out), "--hidden", "48"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_dictionary", lambda stress: few)
        settings = ["--epochs", "25", "--batch-size", "16", "--learning-rate", "0.01", "--dropout", "0.1"]
        done = CliRunner().invoke(app, [*arguments, *settings, *more])
    assert done.exit_code == 0, done.output
    assert "test phoneme error rate" in done.output


@pytest.fixture(scope="session")
def exported(trained: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that serves the run as `g2p`, the one with a stack as `aligned`."""
    folder = tmp_path_factory.mktemp("served")
    export_run(trained, folder / "g2p.onnx")
    export_run(aligned, folder / "aligned.onnx")
    return folder


@pytest.fixture(scope="session")
def client(exported: Path, start_shared_server: Callable[..., ServerProcess]) -> Iterator[Client]:
    """A client of a server of that folder."""
    with connect(start_shared_server(exported).target) as client:
        yield client
