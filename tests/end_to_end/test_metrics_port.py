"""The metrics port against a real server: what it answers, and that no client keeps others from being answered."""

from __future__ import annotations

import gzip
import http.client
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamcell.proto import pb, rpc
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc
from tests.support.certificates import self_signed

OPEN = pb.StreamRequest(open=pb.OpenSession(model="lstm"))
IDLE = 200


def address(server: Any) -> tuple[str, int]:
    host, _, port = server.metrics_url.split("/")[2].partition(":")
    return host, int(port)


def ask(server: Any, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection(*address(server), timeout=60)
    try:
        connection.request(method, path, headers={key.replace("_", "-"): v for key, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.fixture
def idle(served: Any) -> Iterator[list[socket.socket]]:
    """Connections that have sent nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address(served))) for _ in range(IDLE)]


def test_there_are_four_pages_and_two_methods(served: Any) -> None:
    assert ask(served, "GET", "/livez")[::2] == (200, b"alive\n")
    assert ask(served, "GET", "/readyz")[::2] == (200, b"ready\n")
    for path in ("/index.html", "/metrics/", "/favicon.ico", "/livez/x", "/..", "/%6detrics/x"):
        assert ask(served, "GET", path)[0] == 404, path
    for path in ("/", "/metrics", "/livez", "/readyz"):
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            status, headers, _ = ask(served, method, path)
            assert (status, headers["Allow"]) == (405, "GET, HEAD"), (method, path)


def test_head_is_get_without_the_body(served: Any) -> None:
    for path in ("/metrics", "/livez", "/nowhere"):
        status, headers, body = ask(served, "HEAD", path)
        again, same, whole = ask(served, "GET", path)
        assert (status, headers["Content-Type"], body) == (again, same["Content-Type"], b"")
        assert int(same["Content-Length"]) == len(whole)
        assert int(headers["Content-Length"]) > 0


def test_a_page_has_the_names_that_were_asked_for(served: Any) -> None:
    names = ("streamcell_ready", "streamcell_log_lines_dropped_total", "streamcell_compute_seconds_count")
    query = "&".join(f"name[]={name}" for name in names)
    _, _, page = ask(served, "GET", f"/metrics?{query}")
    found = {
        line.partition("{")[0].partition(" ")[0] for line in page.decode().splitlines() if line[0] != "#"
    }
    assert found == set(names)
    assert ask(served, "GET", "/metrics?name[]=nothing")[2] == b""
    assert ask(served, "GET", "/metrics?" + "name[]=x&" * 200)[0] == 400


def test_a_page_is_openmetrics_or_compressed_if_asked_for(served: Any) -> None:
    kind = "application/openmetrics-text; version=1.0.0"
    _, headers, page = ask(served, "GET", "/metrics", Accept=kind)
    assert headers["Content-Type"].startswith(kind)
    assert page.endswith(b"# EOF\n")
    assert page.count(b"# EOF") == 1
    families = {family.name for family in text_string_to_metric_families(page.decode())}
    assert {"streamcell_steps", "streamcell_ready", "streamcell_step_latency_seconds"} <= families
    _, headers, page = ask(served, "GET", "/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"# TYPE streamcell_steps_total counter" in gzip.decompress(page)
    for odd in ("application/openmetrics-text; version=x", "text/plain; version=9", ";;", "é"):
        status, headers, page = ask(served, "GET", "/metrics", Accept=odd)
        assert (status, b"streamcell_ready 1.0" in page) == (200, True), odd
        assert headers["Content-Type"].startswith("text/plain; version=")


def test_what_is_too_long_or_no_http_is_refused(served: Any) -> None:
    for sent, status in (
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\0\1\2\3\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /metrics HTTP/7.0\r\n\r\n", b"505"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b""),
    ):
        with socket.create_connection(address(served), timeout=60) as connection:
            connection.sendall(sent)
            answer = b""
            try:
                while data := connection.recv(4096):
                    answer += data
            except ConnectionResetError:
                pass
            assert status in answer[:16], sent
    assert served.metric("streamcell_ready") == 1


def test_connections_that_send_nothing_keep_nobody_waiting(served: Any, idle: list[socket.socket]) -> None:
    for _ in range(3):
        assert ask(served, "GET", "/livez")[0] == 200
        assert served.metric("streamcell_ready") == 1
    # None has a thread of its own. How many others there are changes: gRPC's come and go.
    assert psutil.Process(served.pid).num_threads() < IDLE / 2
    with ExitStack() as stack:  # and beyond what is kept open at once
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection(address(served)))
        assert served.metric("streamcell_ready") == 1


def test_connections_that_trickle_keep_nobody_waiting(served: Any, idle: list[socket.socket]) -> None:
    for sent in b"GET /metr":
        for connection in idle:
            connection.sendall(bytes([sent]))
        assert ask(served, "GET", "/readyz")[0] == 200
    assert served.metric("streamcell_ready") == 1


def test_connections_that_read_nothing_keep_nobody_waiting(served: Any, idle: list[socket.socket]) -> None:
    for connection in idle:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert ask(served, "GET", "/livez")[0] == 200
    assert served.metric("streamcell_ready") == 1


def test_a_slow_head_ends_the_connection(served: Any) -> None:
    with socket.create_connection(address(served), timeout=60) as connection:
        connection.sendall(b"GET /metrics HTT")
        assert connection.recv(1) == b""


@pytest.mark.conformance
def test_no_client_can_make_the_page_grow(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir, "--model-control", "explicit", "--load-model", "*")
    sizes = []
    with grpc.insecure_channel(server.target) as channel:
        ours, open_inference = rpc.StreamCellStub(channel), oip_rpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for number in range(40):
            odd = f'odd {number} "\n' + "x" * number
            for call in (
                lambda odd=odd: list(ours.Stream(iter([pb.StreamRequest(open=pb.OpenSession(model=odd))]))),
                lambda odd=odd: ours.Predict(pb.PredictRequest(model=odd, version=odd, inputs=[b"x"])),
                lambda odd=odd: ours.Predict(pb.PredictRequest(model="lstm", version=odd, inputs=[b"x"])),
                lambda odd=odd: open_inference.RepositoryModelLoad(
                    oip.RepositoryModelLoadRequest(model_name=odd)
                ),
                lambda odd=odd: open_inference.RepositoryModelUnload(
                    oip.RepositoryModelUnloadRequest(model_name=odd)
                ),
                lambda odd=odd: open_inference.ModelInfer(oip.ModelInferRequest(model_name=odd, id=odd)),
            ):
                with pytest.raises(grpc.RpcError):
                    call()
            if number in (9, 39):
                sizes.append(len([line for line in server.metrics().splitlines() if line[0] != "#"]))
    assert sizes[0] == sizes[1]
    assert "odd" not in server.metrics()


def test_readiness_ends_with_sigterm_and_clients_that_hang_do_not_keep_the_server(
    start_server: Any, models_dir: Path, eventually: Any
) -> None:
    server = start_server(models_dir, "--grace-s", "60")
    hanging = threading.Event()
    with grpc.insecure_channel(server.target) as channel, ExitStack() as stack:
        stack.callback(hanging.set)

        def requests() -> Iterator[pb.StreamRequest]:
            yield OPEN
            while ask(server, "GET", "/readyz")[0] == 200:
                yield pb.StreamRequest(inputs=[bytes(12)])
            hanging.wait()  # the server waits for this session, and no longer

        replies = rpc.StreamCellStub(channel).Stream(requests())
        next(replies), next(replies)
        server.ask_to_stop()
        assert eventually(lambda: ask(server, "GET", "/readyz")[0] == 503)
        assert ask(server, "GET", "/livez")[0] == 200
        for sent in (b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n") * 5:
            connection = stack.enter_context(socket.create_connection(address(server)))
            connection.sendall(sent)
        hanging.set()
        list(replies)
        assert server.process.wait(60) == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), san="IP:127.0.0.1")


@pytest.mark.parametrize("own", [True, False], ids=["its own certificate", "the gRPC port's"])
def test_the_port_speaks_tls(start_server: Any, models_dir: Path, pair: tuple[Path, Path], own: bool) -> None:
    certificate, key = pair
    names = ("--metrics-tls-cert", "--metrics-tls-key") if own else ("--tls-cert", "--tls-key")
    flags = [names[0], str(certificate), names[1], str(key), *([] if own else ["--metrics-tls"])]
    server = start_server(models_dir, *flags)
    url = server.metrics_url.replace("http:", "https:")
    trusted = ssl.create_default_context(cafile=str(certificate))
    with ExitStack() as stack:
        for _ in range(20):  # that begin no handshake, and that speak plain HTTP
            stack.enter_context(socket.create_connection(address(server)))
            plain = stack.enter_context(socket.create_connection(address(server)))
            plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=60, context=trusted) as answer:
                assert b"streamcell_ready 1.0" in answer.read()


def test_a_key_of_another_certificate_is_told_as_such(
    models_dir: Path, pair: tuple[Path, Path], tmp_path: Path, frontends: int
) -> None:
    from streamcell.client.local_server import ServerProcess, ServerProcessError

    certificate, _ = pair
    _, other = self_signed(tmp_path)
    for key, text in ((other, "is not the key of"), (tmp_path / "none.pem", "no file at")):
        flags = ("--metrics-tls-cert", str(certificate), "--metrics-tls-key", str(key))
        server = ServerProcess(models_dir, *flags, environment={"STREAMCELL_FRONTENDS": str(frontends)})
        with pytest.raises(ServerProcessError, match=text):
            server.wait_until_up()
        assert server.process.wait(60) == 1
        server.stop()
