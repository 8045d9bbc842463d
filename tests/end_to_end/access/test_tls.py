"""TLS with client certificates: who gets in, as whom, and what changes while sessions run."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from streamcell.client import connect
from streamcell.client.errors import NotAuthenticated, Unavailable
from streamcell.client.local_server import ServerProcess
from tests.support.certificates import Authority, trusting

Eventually = Callable[[Callable[[], bool]], bool]
Serve = Callable[..., ServerProcess]


class Files:
    """The files that a server reads its certificates from."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = (folder / name for name in ("cert.pem", "key.pem", "clients.pem"))

    def put(self, pair: tuple[Path, Path], clients: Path) -> None:
        shutil.copy(pair[0], self.cert), shutil.copy(pair[1], self.key), shutil.copy(clients, self.ca)

    def flags(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key), "--tls-client-ca", str(self.ca)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder, "ours"), Authority(folder, "foreign")


@pytest.fixture(scope="module")
def files(authorities: tuple[Authority, Authority], tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("server"))
    made.put(authorities[0].issue("server"), authorities[0].cert)
    return made


@pytest.fixture(scope="module")
def server(start_server: Serve, models: Path, files: Files) -> ServerProcess:
    return start_server(models, *files.flags())


def connected(server: ServerProcess, credentials: grpc.ChannelCredentials, timeout_s: float = 20.0) -> Any:
    target = server.target.replace("127.0.0.1", "localhost")
    options = (("grpc.use_local_subchannel_pool", 1),)
    return connect(target, tls=credentials, timeout_s=timeout_s, options=options)


@pytest.mark.conformance
def test_a_certificate_of_the_authority_gets_in_as_its_alternative_name(
    server: ServerProcess, authorities: tuple[Authority, Authority]
) -> None:
    ours, foreign = authorities
    acme = trusting(ours, ours.issue("acme", "DNS:a.example,URI:spiffe://bank/acme"))
    desk = trusting(ours, ours.issue("desk", "URI:spiffe://bank/desk"))
    # The common name is no identity: this one would be acme.
    same = trusting(ours, ours.issue("acme2", "DNS:a.example,URI:spiffe://bank/acme"))
    with connected(server, acme) as client, client.session("sum") as session:
        assert session.step([1.0]) == 1.0
        assert [each.id for each in client.sessions()] == [session.id]
        with connected(server, desk) as other:
            assert not list(other.sessions())
        with connected(server, same) as again:
            assert [each.id for each in again.sessions()] == [session.id]
    nobody = trusting(ours, ours.issue("nobody", ""))
    with connected(server, nobody) as client, pytest.raises(NotAuthenticated, match="names nobody"):
        client.models()
    for pair in (
        None,
        foreign.issue("client", "URI:spiffe://bank/acme"),
        ours.issue("late", "URI:spiffe://bank/acme", expired=True),
    ):
        with connected(server, trusting(ours, pair)) as client, pytest.raises(Unavailable):
            client.models()
    # Nor does a client that trusts another authority talk to this server.
    deceived = trusting(foreign, ours.issue("client", "URI:spiffe://bank/acme"))
    with connected(server, deceived) as client, pytest.raises(Unavailable):
        client.models()


def _spoken(port: int, newest: ssl.TLSVersion, pair: tuple[Path, Path]) -> str:
    """What a client of `pair` that speaks nothing newer agrees on; "" if nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(*pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        try:
            with context.wrap_socket(plain) as secured:
                return str(secured.version())
        except (ssl.SSLError, ConnectionError):
            return ""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(
    server: ServerProcess, authorities: tuple[Authority, Authority]
) -> None:
    pair = authorities[0].issue("old")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            context.wrap_socket(accepted, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        # The client can.
        assert _spoken(listening.getsockname()[1], ssl.TLSVersion.TLSv1_1, pair) == "TLSv1.1"
    port = int(server.target.rpartition(":")[2])
    assert _spoken(port, ssl.TLSVersion.TLSv1_2, pair) == "TLSv1.2"
    assert _spoken(port, ssl.TLSVersion.TLSv1_1, pair) == ""


@pytest.mark.conformance
def test_certificates_change_under_load_and_no_session_is_lost(
    start_server: Serve, models: Path, tmp_path: Path, eventually: Eventually
) -> None:
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    files = Files(tmp_path)
    files.put(before.issue("server"), before.cert)
    server = start_server(models, *files.flags())
    old = trusting(before, before.issue("client", "DNS:feed.example"))
    new = trusting(after, after.issue("client", "DNS:feed.example"))

    def accepted(credentials: grpc.ChannelCredentials) -> bool:
        with connected(server, credentials) as client:
            try:
                client.models()
            except Unavailable:
                return False
            return True

    done = threading.Event()
    with connected(server, old, 60.0) as client:
        sessions = [client.session("sum") for _ in range(8)]

        def load() -> Iterator[int]:
            """Steps of every session, in turn, until the certificates have changed."""
            count = 0
            while not done.is_set():
                count += 1
                for session in sessions:
                    assert session.step([1.0]) == count
                yield count

        counts: list[int] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                counts.extend(load())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert accepted(old)
            assert not accepted(new)
            files.put(after.issue("server"), after.cert)  # nobody sends a signal
            assert eventually(lambda: accepted(new))
            assert eventually(lambda: not any(accepted(old) for _ in range(8)))  # by no front end
            changed = len(counts)
            assert eventually(lambda: len(counts) > changed + 10 or bool(failures))
        finally:
            done.set()
            thread.join()
        assert not failures
        for session in sessions:
            session.close()
