"""The compose file's replicas, their store and Envoy: who reaches whom, and that each file fits the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamcell.service import Settings
from tests.repo.test_deploy import COMPOSE, DASHBOARDS, DOCKERFILE, REPLICAS, instruction
from tests.support.routing_files import DERIVED, ROOT, TESTED, endpoints, read, routing, tls

CLUSTER = {
    name: service for name, service in COMPOSE["services"].items() if service.get("profiles") == ["cluster"]
}
STORES = ("valkey", "valkey-replica")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "secrets"
    subprocess.run([ROOT / "deploy" / "certificates", folder], check=True, capture_output=True)
    return folder


def test_the_profile_has_replicas_stores_and_envoy() -> None:
    assert set(CLUSTER) == {*REPLICAS, *STORES, "envoy"}
    for name in REPLICAS:
        assert CLUSTER[name]["hostname"] == name
        assert {key: value for key, value in CLUSTER[name].items() if key != "hostname"} == {
            key: value for key, value in CLUSTER[REPLICAS[0]].items() if key != "hostname"
        }


def test_only_envoy_is_reached_from_outside() -> None:
    assert [name for name, service in CLUSTER.items() if service.get("ports")] == ["envoy"]
    internal = {name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")}
    members = {
        name: {
            each
            for each, service in COMPOSE["services"].items()
            if name in service.get("networks", ["default"])
        }
        for name in COMPOSE["networks"]
    }
    assert internal == {"replicas", "store"}
    assert members["store"] == {*REPLICAS, *STORES}
    assert members["replicas"] == {*REPLICAS, "envoy", "prometheus"}
    assert members["edge"] == {"envoy"}
    assert members["default"] == {"server", "server-gpu", "prometheus", "grafana"}


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_s_variables_make_settings(name: str, secrets: Path) -> None:
    service = CLUSTER[name]
    given = {
        key.removeprefix("STREAMCELL_").lower(): re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value))
        for key, value in service["environment"].items()
    }
    files = {value.rpartition("/")[2] for value in given.values() if value.startswith("/run/secrets/")}
    assert files == set(service["secrets"])
    assert all((secrets / file).exists() for file in files)
    settings = Settings(models=Path("/models"), replica=service["hostname"], **given)  # type: ignore[arg-type]
    assert settings.durability == "store-async"
    assert settings.store is not None
    assert settings.store.startswith("valkeys://valkey:")
    assert "valkey" in COMPOSE["services"]
    # What all sessions of a model keep in shared memory, and as much again.
    gigabytes = float(service["shm_size"].removesuffix("gb"))
    assert gigabytes * 2**30 > 2 * settings.max_sessions * settings.journal_reply_bytes


def test_every_secret_is_made_and_goes_where_it_is_needed(secrets: Path) -> None:
    assert all((secrets / name).exists() for name in COMPOSE["secrets"])
    holders = {
        secret: {
            name for name, service in COMPOSE["services"].items() if secret in service.get("secrets", ())
        }
        for secret in COMPOSE["secrets"]
    }
    assert holders["store.key"] == holders["store.password"] == set(REPLICAS)
    assert holders["valkey.acl"] == holders["valkey.key"] == holders["valkey-replication.conf"] == set(STORES)
    assert "envoy" not in holders["tokens.toml"]
    # The store's file has hashes, and no line of it a password.
    password = (secrets / "store.password").read_text()
    assert password not in (secrets / "valkey.acl").read_text()


@pytest.mark.parametrize("name", STORES)
def test_a_store_keeps_what_it_was_given(name: str) -> None:
    command = CLUSTER[name]["command"]
    mounts = dict(volume.split(":")[:2] for volume in CLUSTER[name]["volumes"])
    assert mounts["./deploy/valkey"] == command[1].rpartition("/")[0]
    lines = [line.split() for line in (ROOT / "deploy" / "valkey" / "valkey.conf").read_text().splitlines()]
    found: dict[str, str] = {line[0]: " ".join(line[1:]) for line in lines if line and line[0] != "#"}
    assert found["appendonly"] == "yes"
    assert found["maxmemory-policy"] == "noeviction"
    assert found["port"] == "0"
    assert found["dir"] in mounts.values()
    for option in ("tls-cert-file", "tls-key-file", "tls-ca-cert-file", "aclfile", "include"):
        assert found[option].rpartition("/")[2] in CLUSTER[name]["secrets"]
    gigabytes = float(CLUSTER[name]["deploy"]["resources"]["limits"]["memory"].removesuffix("G"))
    assert float(found["maxmemory"].removesuffix("gb")) < gigabytes
    follows = ["--replicaof", f"valkey {found['tls-port']}"]
    assert command[2:] == (follows if name == "valkey-replica" else [])


def test_the_image_has_what_a_replica_imports() -> None:
    for extra in ("serve", "gpu"):
        assert f"'.[{extra},store]'" in DOCKERFILE


@pytest.mark.parametrize("path", DERIVED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_envoy_routes_as_the_tested_file_does(path: Path) -> None:
    assert routing(read(path)) == routing(read(TESTED))
    down, up = tls(read(path))
    assert down["alpn_protocols"] == up["alpn_protocols"] == ["h2"]
    assert up["validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "server"}}
    ]


def test_there_is_a_file_for_each_deployment() -> None:
    assert len(DERIVED) == 3


@pytest.mark.parametrize("path", DERIVED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_envoy_takes_the_file(path: Path, secrets: Path, tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(path.read_text().replace("/run/secrets", str(secrets)))
    command = [
        Path(sys.executable).with_name("envoy"),
        "--mode",
        "validate",
        "--concurrency",
        "1",
        "-c",
        file,
    ]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_compose_s_envoy_names_the_replicas_as_they_name_themselves() -> None:
    (mount,) = CLUSTER["envoy"]["volumes"]
    source, target, _ = mount.split(":")
    assert target in CLUSTER["envoy"]["command"]
    config = read(ROOT / source)
    assert endpoints(config) == [(name, int(instruction("CMD")[-3]), name) for name in REPLICAS]
    (listener,) = config["static_resources"]["listeners"]
    inside = listener["address"]["socket_address"]["port_value"]
    assert CLUSTER["envoy"]["ports"][0].endswith(f":{inside}")


def test_the_cluster_s_dashboard_has_a_row_for_each_replica() -> None:
    (path,) = (path for path in DASHBOARDS if path.stem == "streamcell-cluster")
    dashboard: dict[str, Any] = json.loads(path.read_text())
    (row,) = (panel for panel in dashboard["panels"] if panel.get("repeat"))
    assert row["repeat"] == "replica"
    assert row["type"] == "row"
    own = dashboard["panels"][dashboard["panels"].index(row) + 1 :]
    assert len(own) >= 6
    for panel in own:
        assert all('replica=~"$replica"' in target["expr"] for target in panel["targets"])
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert titles == ["The cluster", "The store", "Moves and resumes", "$replica"]
