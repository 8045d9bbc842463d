"""The compose file's cluster on this machine: its store's rights are enough and no more; Envoy speaks TLS both ways."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from streamcell.client import Unavailable, connect
from streamcell.client.errors import NotAuthenticated
from streamcell.client.local_server import ServerProcess
from streamcell.service import Settings
from streamcell.service.store.connection import Connection, StoreAddress
from streamcell.service.store.errors import StoreConfigError, StoreFailure
from streamcell.service.store.store import Store
from tests.repo.test_deploy import COMPOSE, REPLICAS
from tests.support.proxies import proxy, replaced
from tests.support.stores import new_id, opened
from tests.support.tokens import bearer
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "deploy" / "proxies" / "cluster"
X = np.ones(3, np.float32)


def make(folder: Path) -> Path:
    subprocess.run([ROOT / "deploy" / "certificates", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cluster") / "secrets")


def configured(secrets: Path, acl: Path | None = None) -> list[str]:
    """The deployment's valkey.conf as options, for this machine: the tests' valkey-server was built without TLS."""
    options = []
    for line in (ROOT / "deploy" / "valkey" / "valkey.conf").read_text().splitlines():
        name, _, value = line.partition(" ")
        if (
            name
            and name != "#"
            and not name.startswith("tls-")
            and name not in ("port", "dir", "appendonly", "save")
        ):
            options += [f"--{name}", value.replace("/run/secrets", str(secrets))]
    if acl is not None:
        options[options.index("--aclfile") + 1] = str(acl)
    assert {"--aclfile", "--include", "--maxmemory"} <= set(options)
    return options


def settings(secrets: Path, server: ValkeyServer) -> Settings:
    """A replica's settings of the compose file, with this store."""
    given = {
        name.removeprefix("STREAMCELL_").lower(): str(value).replace("/run/secrets", str(secrets))
        for name, value in COMPOSE["services"][REPLICAS[0]]["environment"].items()
        if "$" not in str(value)
    }
    del given["store_ca"]
    return Settings(models=ROOT, **{**given, "durability": "store-sync", "store": server.url})  # type: ignore[arg-type]


def user(secrets: Path, server: ValkeyServer, name: str, password: str) -> Connection:
    return Connection(
        StoreAddress("127.0.0.1", server.port, user=name, password=password), "test", timeout_s=10
    )


@pytest.fixture(scope="module")
def primary(secrets: Path) -> Iterator[ValkeyServer]:
    with valkey(*configured(secrets)) as server:
        yield server


def test_two_replicas_hand_a_session_over_with_the_rights_of_the_store_s_user(
    secrets: Path, primary: ValkeyServer
) -> None:
    with (
        valkey(*configured(secrets), "--replicaof", f"127.0.0.1 {primary.port}") as follower,
        opened(Store.of(settings(secrets, primary))) as a,
        opened(Store.of(settings(secrets, primary))) as b,
    ):
        replication = user(secrets, follower, "streamcell", (secrets / "store.password").read_text())
        assert waited(lambda: b"master_link_status:up" in replication.call(b"INFO", b"replication"))
        key = new_id()
        session = a.open(key, create=True)
        # The owner is asked for it, by a message of the store's.
        a.store.on_release = lambda _: a.store.release(session, lambda: None)
        for _ in range(3):
            a.step(session)
        taken = b.claim(key, 2)
        assert (taken.number, taken.image) == (3, b"state 3")
        moved = b.open(key, 3)
        moved.number = 4
        b.store.delete(moved)
        record = b"sc:s:" + key.hex().encode()
        assert waited(lambda: not replication.call(b"EXISTS", record))
        for each in (a, b):
            assert not any(each.store.figures.errors().values())


@pytest.mark.parametrize(
    "command",
    [
        b"FLUSHALL", b"KEYS *", b"CONFIG GET *", b"SHUTDOWN", b"ACL LIST", b"FUNCTION FLUSH", b"REPLICAOF NO ONE",
        b"SET other 1", b"GET other", b"PUBLISH other 1", b"SUBSCRIBE other", b"MONITOR", b"SAVE",
    ],
    ids=bytes.decode,
)  # fmt: skip
def test_the_store_s_user_may_do_nothing_else(secrets: Path, primary: ValkeyServer, command: bytes) -> None:
    streamcell = user(secrets, primary, "streamcell", (secrets / "store.password").read_text())
    with pytest.raises(StoreFailure, match="may not do that"):
        streamcell.call(*command.split())
    assert streamcell.call(b"PING") == b"PONG"


def test_the_page_names_the_rights_that_the_user_has(secrets: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    row = page[page.index("| `--store-user`") :].partition("\n")[0].replace("\\|", "|")
    (line,) = (each for each in (secrets / "valkey.acl").read_text().splitlines() if "streamcell" in each)
    assert re.findall(r"[+~&]\S+?(?=[`\s])", row) == re.findall(r"[+~&]\S+", line)


def test_the_operator_can_make_the_store_s_replica_the_primary(secrets: Path, primary: ValkeyServer) -> None:
    with valkey(*configured(secrets), "--replicaof", f"127.0.0.1 {primary.port}") as follower:
        with socket.create_connection(("127.0.0.1", follower.port)) as operator:
            password = (secrets / "valkey-operator.password").read_bytes()
            operator.sendall(b"AUTH operator " + password + b"\r\nREPLICAOF NO ONE\r\nGET sc:fence\r\n")
            answers = operator.makefile("rb")
            assert [answers.readline()[:5] for _ in range(3)] == [b"+OK\r\n", b"+OK\r\n", b"-NOPE"]
        with opened(Store.of(settings(secrets, follower))) as a:
            a.claim(new_id(), create=True)


def test_nobody_else_gets_in_and_the_health_check_may_only_ping(secrets: Path, primary: ValkeyServer) -> None:
    for name, password in (("default", ""), ("streamcell", "wrong"), ("replication", "wrong")):
        with pytest.raises(StoreFailure):
            user(secrets, primary, name, password).call(b"PING")
    with socket.create_connection(("127.0.0.1", primary.port)) as health:
        health.sendall(b"AUTH health -\r\nPING\r\nGET sc:fence\r\nINFO\r\n")
        answers = health.makefile("rb")
        assert [answers.readline()[:5] for _ in range(4)] == [b"+OK\r\n", b"+PONG", b"-NOPE", b"-NOPE"]


@pytest.mark.parametrize("right", ["+fcall", "+info", "~sc:*"])
def test_a_replica_says_at_its_start_that_its_user_lacks_a_right(
    secrets: Path, tmp_path: Path, right: str
) -> None:
    """Mutants of the rights: the test of the handover would fail with each."""
    acl, text = tmp_path / "acl", (secrets / "valkey.acl").read_text()
    assert f" {right}" in text
    acl.write_text(text.replace(f" {right}", ""))
    with valkey(*configured(secrets, acl)) as server:
        store = Store.of(settings(secrets, server))
        assert store is not None
        with pytest.raises(StoreConfigError, match="may not do that"):
            store.start()


@pytest.fixture(scope="module")
def replicas(
    start_server: Any, models_dir: Path, secrets: Path, primary: ValkeyServer
) -> dict[str, ServerProcess]:
    """Two of the compose file's replicas, with its TLS, its tokens and its store."""
    environment = {
        name: str(value).replace("/run/secrets", str(secrets))
        for name, value in COMPOSE["services"][REPLICAS[0]]["environment"].items()
        if "$" not in str(value) and name != "STREAMCELL_STORE_CA"
    }
    environment |= {"STREAMCELL_STORE": primary.url, "STREAMCELL_DURABILITY": "store-async"}
    environment |= {"STREAMCELL_MAX_SESSIONS": "20"}
    return {name: start_server(models_dir, **environment, STREAMCELL_REPLICA=name) for name in REPLICAS[:2]}


def files(folder: Path, secrets: Path, up: dict[str, ServerProcess]) -> Path:
    """A folder with compose's Envoy file for this machine, where these of the three replicas are up."""
    text = (CLUSTER / "compose.yaml").read_text()
    ports = {name: up[name].target.rpartition(":")[2] if name in up else "1" for name in REPLICAS}
    text = replaced(
        text,
        ("address: 0.0.0.0, port_value: 8500", "address: 127.0.0.1, port_value: 8080"),
        *(
            (f"address: {name}, port_value: 8500", f"address: localhost, port_value: {port}")
            for name, port in ports.items()
        ),
        ("/run/secrets", str(secrets)),
    )
    (folder / "files").mkdir()
    (folder / "files" / "envoy.yaml").write_text(text)
    return folder / "files"


def ready(client: Any) -> bool:
    try:
        return bool(client.models())
    except Unavailable:
        return False


def test_a_client_reaches_a_replica_through_envoy_by_tls_and_with_its_token(
    replicas: dict[str, ServerProcess],
    secrets: Path,
    tmp_path: Path,
    program: Callable[[str], str],
    eventually: Callable[[Callable[[], bool]], bool],
) -> None:
    token, ca = bearer((secrets / "client.token").read_text()), secrets / "ca.pem"
    with proxy("envoy", program, tmp_path, files=files(tmp_path, secrets, replicas)) as target:
        with connect(target, tls=ca, metadata=token) as client:
            assert eventually(lambda: ready(client))
            with client.session("lstm", resume=True) as session:
                assert np.isfinite(session.step(X)).all()
        with connect(target, tls=ca) as client, pytest.raises(NotAuthenticated):
            client.models()
        with connect(target, timeout_s=5) as client, pytest.raises(Unavailable):
            client.models()


@pytest.mark.parametrize("same", [True, False], ids=["its own", "another"])
def test_envoy_speaks_with_replicas_of_its_authority_alone(
    replicas: dict[str, ServerProcess],
    secrets: Path,
    tmp_path: Path,
    program: Callable[[str], str],
    same: bool,
) -> None:
    own = secrets if same else make(tmp_path / "other")
    folder, token = files(tmp_path, own, replicas), bearer((secrets / "client.token").read_text())
    # Without health checks, which would hide that replica before anything is sent.
    config = yaml.safe_load((folder / "envoy.yaml").read_text())
    (cluster,) = config["static_resources"]["clusters"]
    del cluster["health_checks"], cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][1:]
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    with (
        proxy("envoy", program, tmp_path, files=folder) as target,
        connect(target, tls=own / "ca.pem", metadata=token, timeout_s=10) as client,
        nullcontext() if same else pytest.raises(Unavailable, match="remote connection failure"),
    ):
        assert client.models()


def test_a_session_goes_on_at_another_replica_when_its_own_shuts_down(
    replicas: dict[str, ServerProcess],
    primary: ValkeyServer,
    secrets: Path,
    tmp_path: Path,
    program: Callable[[str], str],
    eventually: Callable[[Callable[[], bool]], bool],
) -> None:
    """The last of the module: afterwards one of its replicas is gone."""
    store = user(secrets, primary, "streamcell", (secrets / "store.password").read_text())

    def owner(session: str) -> str:
        boot: bytes = store.call(b"HGET", b"sc:s:" + session.encode(), b"owner")
        return boot.decode().rpartition("-")[0]

    x = np.random.default_rng(3).standard_normal((12, 3)).astype(np.float32)
    token = bearer((secrets / "client.token").read_text())
    with (
        proxy("envoy", program, tmp_path, files=files(tmp_path, secrets, replicas)) as target,
        connect(target, tls=secrets / "ca.pem", metadata=token) as client,
    ):
        assert eventually(lambda: ready(client))
        with client.session("lstm", resume=True) as session:
            assert session.durability == "store-async"
            y = [session.step(each) for each in x[:6]]
            first = owner(session.id)
            replicas[first].process.terminate()
            assert replicas[first].process.wait(60) == 0
            y += [session.step(each) for each in x[6:]]
            assert {first, owner(session.id)} == set(replicas)
        np.testing.assert_allclose(np.stack(y), client.predict("lstm", x[None])[0], atol=1e-5)
