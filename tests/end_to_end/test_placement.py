"""The simulated placements are those of Envoy and HAProxy themselves, and losing a replica moves what it should."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamcell.benchmarks import placement
from streamcell.benchmarks.placement import EnvoyRing, HAProxyTree, session_ids, simulate
from streamcell.benchmarks.report.parts import put
from tests.support.ports import free_port

SESSIONS = session_ids(300, seed=5)
REPLICAS = 5
RING_SIZE, WEIGHT = 1_000, 3
_TYPES = "type.googleapis.com/envoy.extensions.filters"


class _Named(BaseHTTPRequestHandler):
    """Answers with the port that was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """Ports of servers that tell which one they are."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Named) for _ in range(REPLICAS)]
    for each in servers:
        each.daemon_threads = True
        threading.Thread(target=each.serve_forever, daemon=True).start()
    yield [each.server_address[1] for each in servers]
    for each in servers:
        each.shutdown()
        each.server_close()


def envoy(listen: int, ports: Sequence[int], ids: Sequence[int]) -> str:
    endpoints = "".join(
        f"\n          - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"
        for port in ports
    )
    return f"""
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {_TYPES}.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: placement
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": {_TYPES}.http.router.v3.Router}}
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes:
                        - match: {{prefix: /}}
                          route: {{cluster: replicas, hash_policy: [{{header: {{header_name: streamcell-session}}}}]}}
  clusters:
    - name: replicas
      type: STATIC
      lb_policy: RING_HASH
      ring_hash_lb_config: {{minimum_ring_size: {RING_SIZE}}}
      load_assignment:
        cluster_name: replicas
        endpoints:
        - lb_endpoints:{endpoints}
"""


def haproxy(listen: int, ports: Sequence[int], ids: Sequence[int]) -> str:
    servers = "".join(
        f"\n  server s{i} 127.0.0.1:{port} id {i} weight {WEIGHT}" for i, port in zip(ids, ports, strict=True)
    )
    return f"""
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind 127.0.0.1:{listen}
  default_backend b
backend b
  balance hdr(streamcell-session)
  hash-type consistent sdbm avalanche{servers}
"""


@contextmanager
def running(command: list[str | Path], log: Path) -> Iterator[None]:
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.terminate()


def asked(port: int, eventually: Callable[[Callable[[], bool]], bool]) -> list[int]:
    """The port that each session of SESSIONS reaches through the proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def up() -> bool:
        try:
            connection.connect()
        except OSError:
            return False
        return True

    assert eventually(up)
    found = []
    for session in SESSIONS:
        connection.request("GET", "/", headers={"streamcell-session": session})
        found.append(int(connection.getresponse().read()))
    connection.close()
    return found


@pytest.mark.parametrize("without", [None, 2], ids=["all", "one lost"])
@pytest.mark.parametrize("proxy", ["envoy", "haproxy"])
def test_the_proxy_sends_each_session_where_the_simulation_says(
    ports: list[int],
    tmp_path: Path,
    program: Callable[[str], str],
    eventually: Callable[[Callable[[], bool]], bool],
    proxy: str,
    without: int | None,
) -> None:
    kept = [number for number in range(REPLICAS) if number != without]
    there, ids = [ports[number] for number in kept], [number + 1 for number in kept]
    listen, file = free_port(), tmp_path / "proxy.conf"
    simulated: placement.Placement
    if proxy == "envoy":
        file = tmp_path / "proxy.yaml"
        file.write_text(envoy(listen, there, ids))
        command: list[str | Path] = [
            Path(sys.executable).with_name("envoy"), "-c", file, "--concurrency", "1", "--disable-hot-restart",
            "--log-level", "error",
        ]  # fmt: skip
        simulated = EnvoyRing([f"127.0.0.1:{port}" for port in there], RING_SIZE)
    else:
        file.write_text(haproxy(listen, there, ids))
        command = [program("haproxy"), "-db", "-f", file]
        simulated = HAProxyTree(ids, WEIGHT)
    with running(command, tmp_path / "log"):
        found = asked(listen, eventually)
    assert found == [there[owner] for owner in simulated.owners(SESSIONS)]
    assert len(set(found)) == len(kept)


def test_only_haproxys_tree_moves_nothing_needlessly() -> None:
    """Envoy gives the replicas that are left more points each, and these take sessions from one another."""
    lines = list(simulate(10, session_ids(20_000), ring_sizes=(1_000, 65_536), weights=(1, 64)))
    assert [each.proxy.split(",")[0] for each in lines] == ["Envoy", "Envoy", "HAProxy", "HAProxy"]
    for each in lines:
        assert each.replicas == 10
        assert each.idlest <= 1 <= each.busiest <= each.heir
        assert (each.needless == 0) == each.proxy.startswith("HAProxy")
        assert each.needless < 0.12
    few, many, light, heavy = lines
    assert many.busiest < 1.05 < few.busiest  # the more points, the more even
    assert heavy.busiest < light.busiest
    assert many.moved - many.needless == pytest.approx(0.1, abs=0.01)


def test_the_table_is_put_between_the_pages_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n")
    lines = list(simulate(3, session_ids(300), ring_sizes=(2, 1_024), weights=(1,)))
    assert len(lines) == 2  # a ring of two points has none for the third
    put(page, "a", placement.table(lines))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("\n| 3 | ") == 2
    with pytest.raises(ValueError, match="expected one part b"):
        put(page, "b", "")
