"""A server that forgets one of the rules fails the matrix: so the matrix sees each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from streamcell.client.errors import StreamCellError
from streamcell.service.access.grant import Grant
from streamcell.service.access.identity import Identity
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.protocols.native import management
from streamcell.service.protocols.oip import repository, service
from streamcell.service.protocols.oip.scoped_infer import ScopedInfer
from streamcell.service.server import Server
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings
from streamcell.service.transport.health import Health
from tests.support import two_tenants
from tests.support.tokens import token_file
from tests.support.two_tenants import POLICY, scene_on

# How a row of the matrix fails.
SEEN = (AssertionError, grpc.RpcError, StreamCellError, pytest.fail.Exception)

pytestmark = pytest.mark.interpreted("its mutants replace what compiled code calls directly")


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mutants")
    tokens = token_file(
        folder / "tokens.toml", ("acme", "feed"), ("bank", "desk"), ("bank", "ops"), operators=("ops",)
    )
    (folder / "policy.toml").write_text(POLICY)
    settings = Settings.load(
        models=models,
        port=0,
        metrics_port=0,
        token_file=tokens,
        policy_file=folder / "policy.toml",
        max_chunk=4,
    )
    made = Server(settings)
    made.start()
    yield made
    made.stop()


def _everybodys(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The table forgets whose a session is in one of its methods."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        plain = getattr(SessionTable, name)

        def forgets(self: Any, *arguments: Any) -> Any:
            return plain(self, *arguments[: {"page": 3, "close": 2}[name]])

        patch.setattr(SessionTable, name, forgets)

    return mutate


def _claims(patch: pytest.MonkeyPatch) -> None:
    plain = SessionTable.claim

    def claim(self: Any, session_id: str, token: bytes, tenant: str = "") -> Any:
        live = self._live.get(session_id)
        return plain(self, session_id, token, "" if live is None else live.session.tenant)

    patch.setattr(SessionTable, "claim", claim)


def _one_infer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScopedInfer, "of", lambda self, caller, peer: self.whole)


def _sees_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Grant, "sees", lambda self, model: True)


def _all_operators(patch: pytest.MonkeyPatch) -> None:
    for module in (management, repository, service):
        patch.setattr(module, "check_operator", lambda caller, what: None)


def _whose(patch: pytest.MonkeyPatch) -> None:
    def whose(caller: Identity) -> None:
        return None

    patch.setattr(Scopes, "whose", staticmethod(whose))


def _health(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Health, "known_as", lambda self, caller, name: name)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]]] = {
    "lists everybody's sessions": (_everybodys("page"), ("lists_sessions",)),
    "closes everybody's sessions": (_everybodys("close"), ("closes",)),
    "lets everybody resume": (_claims, ("streams",)),
    "has one table of sequences": (_one_infer, ("infers", "infers_in_streams")),
    "shows every model": (
        _sees_all,
        ("streams", "frames", "predicts", "lists_models", "gets_a_model", "is_ready", "has_metadata",
         "has_configuration", "is_indexed"),
    ),
    "takes everybody for an operator": (_all_operators, ("has_figures", "loads", "unloads", "drains")),
    "does not ask whose": (_whose, ("lists_sessions", "closes")),
    "tells everybody's health": (_health, ("is_healthy",)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("mutant", "row"), [(mutant, row) for mutant, (_, rows) in MUTANTS.items() for row in rows]
)
def test_the_matrix_sees_a_server_that(
    server: Server, monkeypatch: pytest.MonkeyPatch, mutant: str, row: str
) -> None:
    seen = False
    with (
        suppress(*SEEN),
        scene_on(f"127.0.0.1:{server.port}") as scene,
        monkeypatch.context() as patch,
    ):
        MUTANTS[mutant][0](patch)
        try:
            getattr(two_tenants, row)(scene)
        except SEEN:
            seen = True
    assert seen
