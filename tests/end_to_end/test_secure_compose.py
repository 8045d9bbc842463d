"""The compose file's settings on files that `deploy/certificates` made: who gets in, and what Prometheus needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

from streamcell.client import connect
from streamcell.client.errors import NotAuthenticated, NotPermitted, StreamCellError
from streamcell.client.local_server import ServerProcess
from tests.repo.test_deploy import COMPOSE, health_command, run_probe
from tests.support.ports import free_port
from tests.support.tokens import bearer

ROOT = Path(__file__).parents[2]
# What a container has, beside files that are secret to their owner.
STORE = {"store.key", "store.password", "valkey.acl", "valkey-replication.conf"}
CERTIFIED = {"server.pem", "server.key", "valkey.pem", "valkey.key"}
IN_CONTAINERS = {"ca.pem", "tokens.toml", "prometheus.token"} | CERTIFIED | STORE
SECRET = {"ca.key", "client.key", "client.token", "operator.token", "valkey-operator.password"}


def make(folder: Path, **environment: str) -> str:
    """What `deploy/certificates` says."""
    done = subprocess.run(
        [ROOT / "deploy" / "certificates", folder],
        env={**os.environ, **environment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    make(folder)
    return folder


@pytest.fixture(scope="module")
def secured(start_server: Any, models_dir: Path, secrets: Path) -> Iterator[ServerProcess]:
    """A server with the environment of the compose file's, and its secrets."""
    service = COMPOSE["services"]["server"]
    access = {
        name: str(value).replace("/run/secrets", str(secrets))
        for name, value in service["environment"].items()
        if "$" not in str(value)
    }
    assert {Path(value).name for value in access.values() if str(secrets) in value} == set(service["secrets"])
    return start_server(models_dir, **access)


def token(secrets: Path, name: str) -> Any:
    return bearer((secrets / f"{name}.token").read_text())


def test_the_files_are_their_owners_and_stay_until_they_are_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    said = make(folder, NAMES="cell.example.org 10.1.2.3")
    assert len(re.findall(r"pem: valid until .* 20\d\d GMT", said)) == 4
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {**dict.fromkeys(IN_CONTAINERS | {"client.pem"}, 0o644), **dict.fromkeys(SECRET, 0o600)}
    names = subprocess.run(
        ["openssl", "x509", "-in", folder / "server.pem", "-noout", "-ext", "subjectAltName"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in (
        "DNS:localhost",
        "DNS:server,",
        "DNS:server-gpu",
        "DNS:cell.example.org",
        "Address:10.1.2.3",
    ):
        assert name in names
    first = contents(folder)
    make(folder)
    assert contents(folder) == first
    inode = (folder / "server.pem").stat().st_ino
    for renew, changed in (
        ("certificates", {"client.pem", "client.key"} | CERTIFIED),
        ("tokens", {"tokens.toml", "client.token", "operator.token", "prometheus.token"}),
        ("store", {*STORE, "valkey-operator.password"}),
        ("all", set(first)),
    ):
        before = contents(folder)
        make(folder, RENEW=renew)
        assert {name for name, content in contents(folder).items() if content != before[name]} == changed
        assert (folder / "server.pem").stat().st_ino == inode  # a container keeps its mount of the file
    said = make(folder, RENEW="certificates", DAYS="29")
    assert "server.pem has expired or will within 30 days: make certificates RENEW=certificates" in said
    for path in ("ca.key", "ca.pem"):
        (folder / path).rename(tmp_path / path)
    make(tmp_path / "other")
    for path in ("ca.key", "ca.pem"):
        shutil.copy(tmp_path / "other" / path, folder)
    make(folder)  # certificates of another authority are of no use
    subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.pem", "server.pem", "client.pem", "valkey.pem"],
        cwd=folder,
        check=True,
    )
    (folder / "ca.key").unlink()
    make(folder)
    for renew, text in (("everything", "RENEW: expected"), ("certificates", "ca.key is not there")):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            make(folder, RENEW=renew)
        assert text in failed.value.stderr


def test_clients_need_the_authority_and_a_token(secured: ServerProcess, secrets: Path) -> None:
    ca = secrets / "ca.pem"
    with connect(secured.target, tls=ca, metadata=token(secrets, "client")) as client:
        with client.session("lstm") as session:
            assert np.isfinite(session.step(np.ones(3, np.float32))).all()
        with pytest.raises(NotPermitted):
            client.load_model("lstm")
    with connect(secured.target, tls=ca, metadata=token(secrets, "operator")) as client:
        assert list(client.sessions()) == []
    for metadata, expected in (((), NotAuthenticated), (token(secrets, "prometheus"), NotPermitted)):
        with connect(secured.target, tls=ca, metadata=metadata) as client, pytest.raises(expected):
            client.models()
    with (
        connect(secured.target, metadata=token(secrets, "client"), timeout_s=5) as client,
        pytest.raises(StreamCellError),
    ):
        client.models()
    with grpc.insecure_channel(secured.target) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(1)


def certificate_of(address: str, secrets: Path) -> bytes | None:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(secrets / "ca.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="server") as connection,
    ):
        return connection.getpeercert(binary_form=True)


def test_renewed_certificates_are_taken_by_both_ports(
    secured: ServerProcess, secrets: Path, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    ports = (secured.target, secured.metrics_url.split("/")[2])
    before = {certificate_of(each, secrets) for each in ports}
    assert len(before) == 1
    with (
        connect(secured.target, tls=secrets / "ca.pem", metadata=token(secrets, "client")) as client,
        client.session("lstm") as session,
    ):
        session.step(np.ones(3, np.float32))
        make(secrets, RENEW="certificates")
        for each in ports:
            assert eventually(lambda each=each: certificate_of(each, secrets) not in before)
        session.step(np.ones(3, np.float32))


def test_the_commands_of_the_page_do_what_it_says(secured: ServerProcess, secrets: Path) -> None:
    page = (ROOT / "docs" / "secure-compose.md").read_text()
    lines = re.findall(r"^\.venv/bin/streamcell (.*?)(?: +# (.*))?$", page, re.MULTILINE)
    assert len(lines) == 3
    for arguments, said in lines:
        done = subprocess.run(
            [sys.executable, "-m", "streamcell.cli", *arguments.replace("deploy/secrets", str(secrets)).split()],
            env={**os.environ, "STREAMCELL_TARGET": secured.target.replace("127.0.0.1", "localhost")},
            capture_output=True, text=True,
        )  # fmt: skip
        refused = said.startswith("fails")
        assert done.returncode == int(refused), done.stderr
        assert ("NOT_AUTHENTICATED" in done.stderr) == refused
        assert ("lstm" in done.stdout) == ("lists the models" in said)


def test_the_images_health_check_needs_no_credential(secured: ServerProcess) -> None:
    port = secured.metrics_url.split("/")[2].rpartition(":")[2]
    assert run_probe(health_command(), port, STREAMCELL_METRICS_TLS="true") == 0
    assert run_probe(health_command(), port) != 0  # plain HTTP


@contextmanager
def prometheus_with(secured: ServerProcess, secrets: Path, folder: Path, program: Any) -> Iterator[str]:
    """The address of a Prometheus with the deployment's configuration, on this machine's server and these secrets."""
    shutil.copytree(ROOT / "deploy" / "prometheus", folder)
    config = yaml.safe_load((folder / "prometheus.yml").read_text().replace("/run/secrets", str(secrets)))
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "streamcell")
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [secured.metrics_url.split("/")[2]]}]
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def target_of(address: str) -> dict[str, Any]:
    """What Prometheus says of its one target; nothing before it has looked."""
    try:
        with urllib.request.urlopen(f"{address}/api/v1/targets", timeout=60) as answer:
            (found,) = json.load(answer)["data"]["activeTargets"] or [{}]
            return dict(found)
    except OSError:
        return {}


@pytest.mark.parametrize(
    ("without", "health", "error"),
    [
        ("", "up", ""),
        ("prometheus.token", "down", "401 Unauthorized"),
        ("client.token", "down", "403 Forbidden"),
        ("ca.pem", "down", "certificate"),
    ],
)
def test_prometheus_scrapes_with_the_made_files_and_with_no_others(
    secured: ServerProcess,
    secrets: Path,
    tmp_path: Path,
    program: Callable[[str], str],
    eventually: Callable[[Callable[[], bool]], bool],
    without: str,
    health: str,
    error: str,
) -> None:
    own = tmp_path / "secrets"
    shutil.copytree(secrets, own)
    if without == "client.token":
        shutil.copy(own / "client.token", own / "prometheus.token")
    elif without:
        make(tmp_path / "other")
        shutil.copy(tmp_path / "other" / without, own / without)
    with prometheus_with(secured, own, tmp_path / "prometheus", program) as address:
        # A scrape that a busy machine holds up fails for that, and the next one does not.
        def told() -> bool:
            found = target_of(address)
            return found.get("health") == health and error in found["lastError"]

        assert eventually(told)
