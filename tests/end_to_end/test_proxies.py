"""nginx, HAProxy and Envoy between client and server: the files of deploy/proxies/ work, and a cut stream says why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import DeadlineExceeded, MessageTooLarge, StreamCellError, Unavailable, connect
from tests.support.ports import free_port
from tests.support.proxies import proxy

X = np.zeros((4096, 3), np.float32)  # 48 KiB
PAGE = "docs/deploy.md, Behind a proxy"
NAMES = ("nginx", "haproxy", "envoy")

# What each proxy does if it is left as it comes, with the times cut short, as changes to its file.
DEFAULT_BODY = {"nginx": ("client_max_body_size 0;", "")}
SHORT_IDLE = {
    "nginx": ("grpc_read_timeout 1h;", "grpc_read_timeout 600ms;"),
    "haproxy": ("timeout server 1h", "timeout server 600ms"),
    "envoy": ("stream_idle_timeout: 3600s", "stream_idle_timeout: 0.6s"),
}
FEW_STREAMS = {
    "nginx": ("http2_max_concurrent_streams 20000;", "http2_max_concurrent_streams 2;"),
    "haproxy": ("tune.h2.max-concurrent-streams 20000", "tune.h2.max-concurrent-streams 2"),
    "envoy": ("{max_concurrent_streams: 20000}", "{max_concurrent_streams: 2}"),
}

Proxied = Callable[..., Any]


@pytest.fixture
def proxied(program: Callable[[str], str], tmp_path: Path) -> Proxied:
    """Starts a proxy of this name before a server, with changes to its file; yields its address."""

    @contextmanager
    def start(name: str, target: str, *changes: tuple[str, str]) -> Iterator[str]:
        with proxy(name, program, tmp_path, ("8500", target.rpartition(":")[2]), *changes) as address:
            yield address

    return start


def cut(target: str) -> StreamCellError:
    """The error of a session that is silent for longer and longer."""
    with connect(target) as client, client.session("lstm") as session:
        for pause_s in (0.0, 1.2, 2.4, 4.8, 9.6):
            time.sleep(pause_s)
            try:
                session.step(X[0])
            except StreamCellError as error:
                return error
    raise AssertionError("the proxy has cut nothing")


def flood(target: str) -> int:
    """Send 2.8 MiB in messages of 48 KiB, more than nginx takes by itself, and return the steps that were applied."""
    with connect(target) as client, client.session("lstm") as session:
        for _ in range(60):
            session.run(X, output="last")
        return session.step_index


@pytest.mark.parametrize("name", NAMES)
def test_the_file_passes_long_streams_and_many(served: Any, proxied: Proxied, name: str) -> None:
    with proxied(name, served.target) as target, connect(target) as client, ExitStack() as stack:
        assert flood(target) == 60 * len(X)
        sessions = [stack.enter_context(client.session("lstm", lazy=True)) for _ in range(150)]
        for session in sessions:
            session.send(X[0])
        assert all(session.receive().shape == (2,) for session in sessions)
        with client.session("lstm", resume=True) as session:
            assert session.run(X[:3]).shape == (3, 2)
        assert len(client.models()) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_that_is_cut_for_its_silence_says_so_and_can_be_resumed(
    served: Any, proxied: Proxied, name: str
) -> None:
    with proxied(name, served.target, SHORT_IDLE[name]) as target:
        error = cut(target)
        assert str(error).startswith(f"{target}: ")
        assert PAGE in str(error)
        with connect(target) as client, client.session("lstm", resume=True) as session:
            for pause_s in (0.0, 1.2, 0.0):
                time.sleep(pause_s)
                session.step(X[0])
            assert session.step_index == 3


@pytest.mark.parametrize("name", DEFAULT_BODY)
def test_a_stream_that_is_cut_for_its_bytes_says_so(served: Any, proxied: Proxied, name: str) -> None:
    with proxied(name, served.target, DEFAULT_BODY[name]) as target, pytest.raises(StreamCellError) as caught:
        flood(target)
    assert PAGE in str(caught.value)
    with (
        proxied(name, served.target, DEFAULT_BODY[name]) as target,
        connect(target) as client,
        pytest.raises(MessageTooLarge, match="takes no body so large"),
    ):
        client.predict("lstm", np.zeros((30, 4096, 3), np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_streams_over_a_connections_bound_wait_for_room(served: Any, proxied: Proxied, name: str) -> None:
    with proxied(name, served.target, FEW_STREAMS[name]) as target, connect(target) as client:
        with client.session("lstm") as first, client.session("lstm") as second:
            first.step(X[0]), second.step(X[0])
            with pytest.raises(DeadlineExceeded):
                client.session("lstm", timeout_s=2)
        # On one stream there is room for all of them.
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(client.session("lstm", multiplex=True)).step(X[0])


def test_envoys_bound_on_all_streams_is_told(served: Any, proxied: Proxied) -> None:
    few = ("max_requests: 1000000", "max_requests: 2")
    with proxied("envoy", served.target, few) as target, connect(target) as client, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(client.session("lstm")).step(X[0])
        with pytest.raises(Unavailable, match="overflow") as caught:
            client.session("lstm")
        assert PAGE in str(caught.value)


def test_nginxs_bound_on_calls_ends_no_stream(served: Any, proxied: Proxied) -> None:
    few = ("keepalive_requests 1000000000;", "keepalive_requests 3;")
    with (
        proxied("nginx", served.target, few) as target,
        connect(target) as client,
        client.session("lstm") as session,
    ):
        for _ in range(8):
            client.models()
            session.step(X[0])
        assert session.step_index == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_proxy_without_its_server_says_so(proxied: Proxied, name: str) -> None:
    with (
        proxied(name, f"127.0.0.1:{free_port()}") as target,
        connect(target) as client,
        pytest.raises(Unavailable, match="a proxy between") as caught,
    ):
        client.models()
    assert str(caught.value).startswith(f"{target}: ")
