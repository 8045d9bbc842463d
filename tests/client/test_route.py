"""What an error says that no server has sent: the target, a proxy of the environment, and what helps."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest

from streamcell.client import MessageTooLarge, StreamCellError, Unavailable, connect, connect_async
from streamcell.client.errors import from_status
from streamcell.client.route import Route
from tests.support.ports import free_port

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    """An HTTP proxy that reaches no server, as one does whose network lacks it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://somebody:secret@127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def told(target: str, **options: Any) -> list[str]:
    """The errors of both clients, of a unary call, a session and a shared session."""
    texts = []
    with connect(target, timeout_s=20, **options) as client:
        for call in (
            client.models,
            lambda: client.session("lstm"),
            lambda: client.session("lstm", multiplex=True),
        ):
            with pytest.raises(Unavailable) as caught:
                call()
            texts.append(str(caught.value))

    async def main() -> None:
        async with connect_async(target, timeout_s=20, **options) as client:
            for call in (
                client.models,
                lambda: client.session("lstm").open(),
                lambda: client.session("lstm", multiplex=True).open(),
            ):
                with pytest.raises(Unavailable) as caught:
                    await call()
                texts.append(str(caught.value))

    asyncio.run(main())
    return texts


def test_behind_a_proxy_of_the_environment_errors_name_target_and_proxy(
    monkeypatch: pytest.MonkeyPatch, refusing_proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", refusing_proxy)
    target = f"localhost:{free_port()}"
    shown = refusing_proxy.replace("somebody:secret@", "")
    for text in told(target):
        assert text.startswith(f"{target} through the proxy {shown} of http_proxy: ")
        assert "secret" not in text
        assert "export no_proxy=localhost" in text
        assert "grpc.enable_http_proxy" in text
    monkeypatch.setenv("no_proxy", "example.org,localhost")
    for text in told(target):
        assert "through the proxy" not in text
        assert text.startswith(f"{target}: ")
        assert "streamcell serve --models" in text  # nothing listens there


def test_a_proxy_counts_as_grpc_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Route.to("a.example.org:8500") == Route("a.example.org:8500")
    monkeypatch.setenv("http_proxy", "http://p:3128")
    assert Route.to("a.example.org:8500").variable == "http_proxy"
    assert Route.to("a.example.org:8500", [("grpc.enable_http_proxy", 0)]).proxy == ""
    assert Route.to("unix:/run/s.sock").proxy == ""
    monkeypatch.setenv("grpc_proxy", "http://q:3128")
    assert Route.to("a.example.org:8500").proxy == "http://q:3128"
    for excepted in ("example.org", ".example.org", "b.org, A.EXAMPLE.ORG"):
        monkeypatch.setenv("no_proxy", excepted)
        assert Route.to("a.example.org:8500").proxy == ""
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    assert Route.to("10.2.3.4:8500").proxy == ""
    assert Route.to("11.2.3.4:8500").proxy == "http://q:3128"


def test_the_wrong_port_and_tls_on_the_wrong_side_are_told_apart(served: Any) -> None:
    metrics = served.metrics_url.split("/")[2]
    assert all("is it the metrics port?" in text for text in told(metrics))
    with connect(served.target, tls=True) as client, pytest.raises(Unavailable) as caught:
        client.models()
    assert "the server speaks plain text there: leave tls out" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        ("UNKNOWN", "Received http2 header with status: 413", MessageTooLarge, "takes no body so large"),
        ("UNAVAILABLE", "Received http2 header with status: 502", Unavailable, "did not reach the server"),
        ("UNAVAILABLE", "Received http2 header with status: 504", Unavailable, "raise its time-out"),
        ("UNAVAILABLE", "Socket closed", Unavailable, "resume=True"),
        ("INTERNAL", "Received RST_STREAM with error code 2", StreamCellError, "resume=True"),
        ("UNIMPLEMENTED", "", StreamCellError, "it is no StreamCell server"),
        ("UNAVAILABLE", "DNS resolution failed for nowhere:8500", Unavailable, "no machine is called so"),
    ],
)
def test_texts_of_the_core_are_explained(
    code: str, text: str, kind: type[StreamCellError], hint: str
) -> None:
    error = from_status(grpc.StatusCode[code], text, (), Route("host:8500").explain)
    assert isinstance(error, kind)
    assert re.match(r"host:8500: ", str(error))
    assert hint in str(error)
