"""Operators have an address of their own: nobody is one elsewhere, and nobody else gets in there."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from streamcell.client import connect
from streamcell.client.errors import NotPermitted, SessionNotFound
from streamcell.client.local_server import ServerProcess
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc
from tests.support.every_method import info_of
from tests.support.ports import free_port
from tests.support.tokens import bearer, token_file

Serve = Callable[..., ServerProcess]


def unload(target: str, metadata: Any = ()) -> str:
    """The reason for which the server does not unload a model."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="sum"), metadata=metadata)
        return info_of(raised.value).reason


@pytest.mark.conformance
def test_a_unix_socket_is_for_the_servers_user_alone(
    start_server: Serve, models: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "admin.sock"
    server = start_server(models, "--admin", f"unix:{socket}")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    with (
        connect(server.target) as client,
        client.session("sum") as session,
        connect(f"unix:{socket}") as admin,
    ):
        assert session.step([1.0]) == 1.0
        assert [each.id for each in admin.sessions()] == [session.id]
        assert admin.ready("sum")
        assert admin.close_session(session.id) == 1
    # The other address serves as before, and controls nothing.
    assert unload(server.target) == "NOT_PERMITTED"
    assert unload(f"unix:{socket}") == "MODEL_CONTROL_OFF"


@pytest.mark.conformance
def test_a_port_of_operators_lets_nobody_else_in(start_server: Serve, models: Path, tmp_path: Path) -> None:
    tokens = token_file(tmp_path / "t.toml", ("acme", "feed"), ("bank", "ops"), operators=("ops",))
    admin = f"127.0.0.1:{free_port()}"
    server = start_server(models, "--admin", admin, "--token-file", str(tokens))
    feed, ops = bearer("token-of-feed"), bearer("token-of-ops")
    with connect(admin, metadata=feed) as client, pytest.raises(NotPermitted, match="'feed' is no operator"):
        client.models()
    with connect(server.target, metadata=feed) as client, client.session("sum") as session:
        session.step([1.0])
        with connect(server.target, metadata=ops) as here:
            assert not list(here.sessions())
            with pytest.raises(SessionNotFound):
                here.close_session(session.id)
        with connect(admin, metadata=ops) as there:
            assert [each.id for each in there.sessions()] == [session.id]
    assert unload(server.target, ops) == "NOT_PERMITTED"
    assert unload(admin, ops) == "MODEL_CONTROL_OFF"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--admin", "127.0.0.1:1"), "unix:/PATH"),
        (("--admin", "somewhere"), "pattern"),
    ],
)
def test_an_address_that_guards_nothing_is_refused(models: Path, flags: tuple[str, ...], why: str) -> None:
    server = ServerProcess(models, *flags)
    assert server.process.wait(60) == 2
    server.stop()
    assert why in "".join(server.said)
