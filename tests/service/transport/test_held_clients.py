"""Which servers hold replies back, and that they find their clients' sockets over plain TCP, IPv6 and TLS."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.service.settings import Settings
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.segments import SEGMENTS, WORTH
from streamcell.service.transport.tcp_figures import peer_name
from streamcell.service.transport.threaded_lane import ThreadedLane
from tests.support.certificates import self_signed


@pytest.mark.parametrize("hold", [True, False])
def test_a_setting_turns_it_off(models_dir: Path, hold: bool) -> None:
    lane = FastLane()
    settings = Settings(models=models_dir, port=0, hold_replies=hold)
    transport = Transport(settings, {}, lane, lambda error: None)
    assert transport.port
    assert lane.in_flight.segments is (SEGMENTS if hold else None)


def test_the_lane_of_threads_holds_nothing() -> None:
    assert ThreadedLane().in_flight.segments is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> tuple[Path, Path]:
    program("openssl")
    return self_signed(tmp_path_factory.mktemp("tls"), san="DNS:localhost,IP:127.0.0.1")


def client_of(port: int) -> str | None:
    """The name of this process's socket that is connected to `port`; None if there is none."""
    for name in os.listdir("/proc/self/fd"):
        try:
            seen = socket.socket(fileno=int(name))
        except OSError:
            continue
        try:
            if seen.getpeername()[1] == port:
                return peer_name(seen.getsockname())
        except (OSError, IndexError):
            continue
        finally:
            seen.detach()
    return None


@pytest.mark.parametrize("way", ["plain", "IPv6", "TLS"])
def test_a_servers_client_is_known_while_it_is_connected(
    models_dir: Path,
    certificate: tuple[Path, Path],
    way: str,
    eventually: Callable[[Callable[[], bool]], bool],
) -> None:
    cert, key = certificate if way == "TLS" else (None, None)
    host = "[::1]" if way == "IPv6" else "127.0.0.1"
    settings = Settings(models=models_dir, host=host, port=0, tls_cert=cert, tls_key=key)
    transport = Transport(settings, {}, FastLane(), lambda error: None)
    transport.start()
    transport.report((), serving=True)
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    target = f"{host}:{transport.port}"
    if cert is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(cert.read_bytes()), options)

    def known() -> bool:
        holding = SEGMENTS.hold([peer] * WORTH)
        SEGMENTS.release(holding)
        return len(holding) == 1

    with channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watching)
        peer = client_of(transport.port)
        assert peer is not None
        assert eventually(known)
    assert eventually(lambda: not known())
    transport.stop()
