"""Which pages may connect, as whom, and over TLS."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess, ServerProcessError
from tests.support.certificates import Authority
from tests.support.tokens import bearer, token_file

from .conftest import Open, port_of
from .test_sessions import OPEN, end, outputs, text

Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="module")
def open_to_one(start_server: Serve, sums: Path) -> ServerProcess:
    return start_server(sums, "--websocket-port", "0", "--websocket-origins", "https://app.example")


@pytest.mark.parametrize(
    ("host", "origin", "admitted"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.1", "https://app.example", True),
        ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("localhost", "http://localhost:8000", True),
        ("localhost", "https://evil.example", False),
        ("127.0.0.1", "https://app.example.evil.example", False),
        ("127.0.0.1", "http://app.example", False),
        ("127.0.0.1", "http://localhost", False),
        ("127.0.0.1", "null", False),
        ("127.0.0.1", "http://[", False),
        # Its owner has the name mean this machine.
        ("evil.example", "http://evil.example", False),
    ],
)
def test_pages_of_other_sites_are_refused_and_told_the_setting(
    open_to_one: ServerProcess, sockets: Open, host: str, origin: str | None, admitted: bool
) -> None:
    port = port_of(open_to_one)
    url = f"ws://{host}:{port}"
    given = None if origin is None else Origin(origin)
    if admitted:
        stream = sockets(open_to_one, url=url, origin=given)
        stream.send(OPEN)
        assert "opened" in json.loads(stream.recv(30))
        return
    with pytest.raises(InvalidStatus) as refused:
        sockets(open_to_one, url=url, origin=given)
    assert refused.value.response.status_code == 403
    assert b"--websocket-origins" in bytes(refused.value.response.body or b"")


def test_a_subprotocol_must_be_named(open_to_one: ServerProcess, sockets: Open) -> None:
    with pytest.raises(InvalidStatus) as refused:
        sockets(open_to_one, "chat")
    assert refused.value.response.status_code == 400
    assert b"streamcell.v1.json or streamcell.v1.proto" in bytes(refused.value.response.body or b"")


def token(subject: str) -> Subprotocol:
    encoded = base64.urlsafe_b64encode(f"token-of-{subject}".encode()).decode().rstrip("=")
    return Subprotocol(f"streamcell.bearer.{encoded}")


@pytest.mark.conformance
def test_a_page_is_whom_its_token_says_and_nobody_without_one(
    start_server: Serve, sums: Path, sockets: Open, tmp_path: Path
) -> None:
    tokens = token_file(tmp_path / "tokens.toml", ("acme", "feed"), ("bank", "desk"))
    server = start_server(sums, "--websocket-port", "0", "--token-file", str(tokens))
    stream = sockets(server, tokens=[token("feed")])
    assert stream.subprotocol == "streamcell.v1.json"
    stream.send(OPEN)
    assert "opened" in json.loads(stream.recv(30))
    for subject, count in (("feed", 1), ("desk", 0)):
        with connect(server.target, metadata=bearer(f"token-of-{subject}")) as client:
            assert len(list(client.sessions())) == count
    for given in ([], [token("stranger")], [token("feed"), token("stranger")]):
        stranger = sockets(server, tokens=given)
        error, closed = end(stranger)
        assert (error["reason"], closed) == ("NOT_AUTHENTICATED", 4016)
    plain = sockets(server, additional_headers={"Authorization": "Bearer token-of-desk"})
    plain.send(OPEN)
    assert "opened" in json.loads(plain.recv(30))
    with pytest.raises(InvalidStatus) as refused:
        sockets(server, tokens=[Subprotocol("streamcell.bearer.a")])
    assert refused.value.response.status_code == 401


def test_tls_with_the_servers_certificate_and_the_next_one(
    start_server: Serve, sums: Path, sockets: Open, tmp_path: Path, eventually: Eventually
) -> None:
    authority = Authority(tmp_path, "ours")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(name: str, san: str) -> None:
        pair = authority.issue(name, san)
        shutil.copy(pair[0], cert)
        shutil.copy(pair[1], key)

    put("first", "IP:127.0.0.1")
    server = start_server(sums, "--websocket-port", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    trust = ssl.create_default_context(cafile=str(authority.cert))

    def steps(name: str) -> bool:
        try:
            stream = sockets(server, url=f"wss://{name}:{port_of(server)}", ssl=trust)
        except ssl.SSLError:
            return False
        stream.send(OPEN)
        if "opened" not in json.loads(stream.recv(30)):
            return False
        stream.send(text(2))
        return outputs(stream.recv(30)) == [2]

    assert steps("127.0.0.1")
    put("second", "DNS:*.site.example")
    assert eventually(lambda: steps("a.site.example"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--tls-client-ca", "ca.pem"), "websocket_port does not go with tls_client_ca"),
        (("--websocket-origins", "*"), "no origin"),
        (("--websocket-origins", "https://app.example/"), "no origin"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(
    sums: Path, flags: tuple[str, ...], told: str
) -> None:
    server = ServerProcess(
        sums, "--websocket-port", "0", "--tls-cert", "cert.pem", "--tls-key", "key.pem", *flags
    )
    with pytest.raises(ServerProcessError, match=told):
        server.wait_until_up()
    server.stop()


def test_without_the_package_the_server_says_how_to_get_it(sums: Path, tmp_path: Path) -> None:
    (tmp_path / "websockets.py").write_text("raise ModuleNotFoundError(name='websockets')")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    server = ServerProcess(sums, "--websocket-port", "0", environment={"PYTHONPATH": path})
    with pytest.raises(ServerProcessError, match=r"pip install 'streamcell\[websocket\]'"):
        server.wait_until_up()
    server.stop()
