"""Small models with every kind of head, served, and the loops in PyTorch that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torch import nn

from streamcell.card import Generation
from streamcell.client import Client, connect
from streamcell.client.errors import from_rpc
from streamcell.client.local_server import ServerProcess
from streamcell.export import export_model, export_module
from streamcell.models import GRU, LSTM, MLP, RNN
from streamcell.proto import pb, rpc
from tests.support.parallel import made_once

KEYS, CLASSES, SYMBOLS, GO = 12, 9, 7, 11
END = 0


class Speller(nn.Module):
    """An index a step: source symbols below GO run one cell, the others another, on one state; logits over SYMBOLS."""

    state_names = ("h",)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(GO + SYMBOLS, 8)
        self.encoder, self.decoder = nn.GRUCell(8, 16), nn.GRUCell(8, 16)
        self.head = nn.Linear(16, SYMBOLS)

    def initial_state(self, batch: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch, 16),)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.table(x)
        source = (x < GO)[:, None]
        h = torch.where(source, self.encoder(embedded, h), self.decoder(embedded, h))
        return 3 * self.head(h), h


def categorical(**more: Any) -> Generation:
    return Generation(output="y", input="x", head="categorical", **more)


@pytest.fixture(scope="session")
def makers() -> dict[str, nn.Module]:
    """The models by name, in evaluation mode."""
    torch.manual_seed(11)
    models: dict[str, nn.Module] = {
        "chords": LSTM(KEYS, 16, output_size=KEYS, num_layers=2, distribution="bernoulli_logits"),
        "words": GRU(CLASSES, 16, output_size=CLASSES, distribution="categorical_logits"),
        "waves": RNN(3, 16, output_size=3, num_layers=2, distribution="real"),
        "noise": GRU(3, 16, output_size=3, distribution="real"),
        "spell": Speller(),
        "markov": MLP(KEYS, [16], output_size=KEYS, distribution="bernoulli_logits"),
        "mute": GRU(3, 8, output_size=2),
        "wide": GRU(1024, 2, output_size=1024, distribution="bernoulli_logits"),
    }
    with torch.no_grad():  # outputs far enough from each other that a choice is a choice
        for model in models.values():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    return {name: model.eval() for name, model in models.items()}


@pytest.fixture(scope="session")
def folder(
    makers: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Path:
    """Every model, exported."""
    return made_once(tmp_path_factory, pytestconfig, "generating", lambda folder: export_all(makers, folder))


def export_all(makers: dict[str, nn.Module], folder: Path) -> None:
    generations: dict[str, Any] = {
        "words": categorical(stop=CLASSES - 1),
        "waves": Generation(output="y", input="x", head="real"),
        "noise": Generation(output="y", input="x", head="real", deviation=(0.1, 0.2, 0.3)),
    }
    for name, model in makers.items():
        if name == "spell":
            export_module(
                model,
                folder / "spell.onnx",
                example_x=torch.randint(0, GO + SYMBOLS, (64,)),
                time_axis=False,
                distribution="categorical_logits",
                generation=categorical(encoding="index", offset=GO, start=GO, stop=END),
            )
        else:
            export_model(model, folder / f"{name}.onnx", generation=generations.get(name, "auto"))


@pytest.fixture(scope="session")
def server(folder: Path, start_shared_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of every model."""
    return start_shared_server(folder, "--max-generate-steps", "5000")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with connect(server.target) as client:
        yield client


@dataclass
class Loop:
    """A model in PyTorch, one step at a time."""

    model: nn.Module
    states: tuple[torch.Tensor, ...]
    steps: int = 0

    @torch.no_grad()
    def step(self, x: Any) -> np.ndarray[Any, Any]:
        """x [*step] → y [*step]."""
        given = torch.as_tensor(np.asarray(x))
        if isinstance(self.model, Speller):
            y, *states = self.model(given[None], *self.states)
        else:
            y, *states = self.model(given[None, None], *self.states)
            y = y[:, 0]
        self.states = tuple(states)
        self.steps += 1
        return np.asarray(y[0])


@pytest.fixture
def loop(makers: dict[str, nn.Module]) -> Callable[[str], Loop]:
    """Starts a loop for a model's name."""

    def start(name: str) -> Loop:
        model: Any = makers[name]
        states = model.initial_state(1) if hasattr(model, "initial_state") else ()
        return Loop(model, tuple(states))

    return start


Raw = Callable[[Iterable[pb.StreamRequest]], Iterator[pb.StreamResponse]]


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[Raw]:
    """Streams requests as they are and gives the replies; an error is raised as the client's."""

    def stream(requests: Iterable[pb.StreamRequest]) -> Iterator[pb.StreamResponse]:
        try:
            yield from stub.Stream(iter(requests), timeout=60)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        yield stream
