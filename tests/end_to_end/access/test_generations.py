"""A tenant's generations on real servers: one too many is refused, and a session that waits for its client counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.errors import LimitReached
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.resumable import Owner, Raw, save_dice, save_sum
from tests.support.tokens import bearer, token_file

Serve = Callable[..., ServerProcess]
ENDLESS = pb.StreamRequest(
    inputs=[np.zeros(1, np.float32).tobytes()], generate=pb.Generate(steps=1000), tag=7
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generations")
    token_file(made / "tokens.toml", ("acme", "acme"), ("bank", "bank"))
    (made / "policy.toml").write_text("[tenants.acme]\nmax_generations = 1\n[tenants.bank]\n")
    (made / "models").mkdir()
    save_sum(made / "models")
    save_dice(made / "models")
    return made


@pytest.fixture(scope="module")
def flags(folder: Path) -> tuple[str, ...]:
    return "--token-file", str(folder / "tokens.toml"), "--policy-file", str(folder / "policy.toml")


def client_of(server: ServerProcess, tenant: str) -> Any:
    return connect(server.target, metadata=bearer(f"token-of-{tenant}"))


def raw(server: ServerProcess, *messages: pb.StreamRequest) -> Raw:
    return Raw(server.target, *messages, metadata=bearer("token-of-acme"))


def refused(server: ServerProcess) -> None:
    """The tenant may have no generation, and no beam search either."""
    with client_of(server, "acme") as client:
        for ask in (
            lambda: list(client.session("sum").generate(2, first=[0.0])),
            lambda: client.session("dice").beam_search(2, width=2),
        ):
            with pytest.raises(LimitReached, match="may have 1 generations and beam searches") as raised:
                ask()
            assert (raised.value.reason, raised.value.retry_after_s) == ("QUOTA_EXCEEDED", 1.0)


@pytest.mark.conformance
def test_a_generation_too_many_is_refused_until_the_other_has_ended(
    start_server: Serve, folder: Path, flags: tuple[str, ...]
) -> None:
    server = start_server(folder / "models", *flags)
    owner = Owner()
    first = raw(server, owner.opening(first=1, window=4), ENDLESS)
    first.replies(2)
    refused(server)
    with client_of(server, "bank") as other, other.session("sum") as session:
        assert len(list(session.generate(3, first=[0.0]))) == 3
    first.cut()  # it waits for its client, and counts
    refused(server)
    again = raw(server, owner.resume(0, received_steps=1))
    assert again.opened().generating == 7
    again.send(ENDLESS, pb.StreamRequest(stop_generation=7))
    while not again.reply().generated.stop_reason:
        pass
    with client_of(server, "acme") as client:
        for _ in range(3):  # each has given its room back
            with client.session("sum") as session:
                assert len(list(session.generate(3, first=[0.0]))) == 3
            with client.session("dice") as session:
                assert session.beam_search(2, width=2)


def test_a_generation_of_an_earlier_process_counts(
    start_server: Serve, folder: Path, flags: tuple[str, ...], tmp_path: Path
) -> None:
    durable = (*flags, "--durability", "process", "--journal-dir", str(tmp_path), "--max-sessions", "8")
    server = start_server(folder / "models", *durable)
    owner = Owner()
    raw(server, owner.opening(first=1, window=4), ENDLESS).replies(2)
    server.process.kill()
    server.process.wait()
    refused(start_server(folder / "models", *durable))
