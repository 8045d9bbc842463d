"""The metrics port asks who looks if the server asks who calls: figures are for operators, probes for everybody."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from streamcell.client import connect
from streamcell.client.errors import NotPermitted
from streamcell.client.local_server import ServerProcess
from tests.support.certificates import Authority
from tests.support.tokens import bearer, token_file

Serve = Callable[..., ServerProcess]
OPS = "spiffe://bank/ops"
FIGURES, PROBES = ("/", "/metrics", "/metrics?name[]=streamcell_ready"), ("/livez", "/readyz")


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"me:{token}".encode()).decode()


class Answer(NamedTuple):
    status: int
    challenge: str | None
    text: str


def ask(
    server: ServerProcess, path: str, authorization: str | None = None, context: ssl.SSLContext | None = None
) -> Answer:
    address = server.metrics_url.split("/")[2]
    connection = (
        http.client.HTTPConnection(address, timeout=60)
        if context is None
        else http.client.HTTPSConnection(address, timeout=60, context=context)
    )
    try:
        connection.request(
            "GET", path, headers={} if authorization is None else {"Authorization": authorization}
        )
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheader("WWW-Authenticate"), answer.read().decode())
    finally:
        connection.close()


def tokens_in(folder: Path, *, lost: str = "") -> Path:
    path = token_file(
        folder / "tokens.toml", ("acme", "feed"), ("bank", "ops"), ("bank", "scraper"), operators=("ops",)
    )
    entries = path.read_text().split("\n\n")
    entries[-1] = entries[-1].replace("operator = false", "metrics = true")
    path.write_text("\n\n".join(entry for entry in entries if not lost or f'"{lost}"' not in entry))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def guarded(start_server: Serve, models_dir: Path, folder: Path) -> Iterator[ServerProcess]:
    return start_server(models_dir, "--token-file", str(tokens_in(folder)))


@pytest.mark.parametrize("path", FIGURES)
def test_figures_are_for_operators_and_tokens_made_for_them(guarded: ServerProcess, path: str) -> None:
    for nobody in (None, "", "Bearer", "Bearer ", "Bearer wrong", "Digest x", "Basic", "Basic !", basic("wrong"),
                   basic(""), "Basic " + base64.b64encode(b"token-of-ops").decode(), "Bearer é"):  # fmt: skip
        answer = ask(guarded, path, nobody)
        assert answer.status == 401, nobody
        assert answer.challenge is not None
        assert answer.challenge.startswith("Basic realm=")
        assert "streamcell_" not in answer.text
        assert "wrong" not in answer.text
    for tenant in ("Bearer token-of-feed", basic("token-of-feed")):
        answer = ask(guarded, path, tenant)
        assert (answer.status, answer.challenge) == (403, None)
        assert "'feed' is no operator" in answer.text
    for viewer in (
        "Bearer token-of-ops",
        basic("token-of-ops"),
        "bearer token-of-scraper",
        basic("token-of-scraper"),
    ):
        assert ask(guarded, path, viewer).status == 200, viewer


def test_probes_are_for_everybody(guarded: ServerProcess) -> None:
    for path in PROBES:
        for anybody in (None, "Bearer wrong", basic("token-of-feed")):
            assert ask(guarded, path, anybody).status == 200, path
    assert ask(guarded, "/nowhere").status == 404


def test_a_token_for_metrics_does_nothing_else(guarded: ServerProcess) -> None:
    with (
        connect(guarded.target, metadata=bearer("token-of-scraper")) as client,
        pytest.raises(NotPermitted, match="for the metrics port alone"),
    ):
        client.models()


def test_a_token_that_leaves_the_file_is_known_no_more(
    guarded: ServerProcess, folder: Path, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    try:
        tokens_in(folder, lost="scraper")
        assert eventually(lambda: ask(guarded, "/metrics", "Bearer token-of-scraper").status == 401)
        assert ask(guarded, "/metrics", "Bearer token-of-ops").status == 200
    finally:
        tokens_in(folder)


@pytest.mark.conformance
def test_a_servers_figures_behind_front_ends_are_guarded_too(
    start_server: Serve, models_dir: Path, tmp_path: Path
) -> None:
    server = start_server(models_dir, "--token-file", str(tokens_in(tmp_path)))
    assert [ask(server, path).status for path in (*FIGURES, *PROBES)] == [401, 401, 401, 200, 200]
    assert ask(server, "/metrics", "Bearer token-of-scraper").status == 200


def test_an_operators_certificate_shows_figures_and_probes_need_none(
    start_server: Serve, models_dir: Path, tmp_path: Path
) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    cert, key = ours.issue("server", "IP:127.0.0.1,DNS:localhost")
    policy = tmp_path / "policy.toml"
    policy.write_text(f'operators = ["{OPS}"]\n[default]\n')
    server = start_server(
        models_dir, "--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(ours.cert),
        "--metrics-tls", "--policy-file", str(policy),
    )  # fmt: skip

    def trusting(pair: tuple[Path, Path] | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(ours.cert))
        if pair is not None:
            context.load_cert_chain(*pair)
        return context

    nobody = trusting(None)
    operator = trusting(ours.issue("ops", f"URI:{OPS},DNS:other"))
    assert [ask(server, path, None, nobody).status for path in PROBES] == [200, 200]
    for path in FIGURES:
        assert ask(server, path, None, operator).status == 200
        assert ask(server, path, None, nobody).status == 401
        assert ask(server, path, None, trusting(ours.issue("feed", "URI:spiffe://bank/feed"))).status == 403
        assert ask(server, path, None, trusting(ours.issue("unnamed", ""))).status == 401
    for stranger in (theirs.issue("ops", f"URI:{OPS}"), ours.issue("old", f"URI:{OPS}", expired=True)):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(server, "/metrics", None, trusting(stranger))


def test_metrics_open_asks_nobody_and_is_told(start_server: Serve, models_dir: Path, tmp_path: Path) -> None:
    server = start_server(
        models_dir, "--token-file", str(tokens_in(tmp_path)), "--metrics-open", "--metrics-host", "0.0.0.0"
    )
    port = server.metrics_url.rpartition(":")[2].partition("/")[0]
    server.metrics_url = f"http://127.0.0.1:{port}/metrics"
    assert [ask(server, path).status for path in (*FIGURES, *PROBES)] == [200] * 5
    assert server.metric("streamcell_ready") == 1
    with grpc.insecure_channel(server.target):
        pass
    assert any("METRICS PORT SEES THE FIGURES" in str(line) for line in server.log)
