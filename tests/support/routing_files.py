"""The Envoy files of the deployments, compared with the one that is tested with replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TESTED = ROOT / "deploy" / "proxies" / "cluster" / "envoy.yaml"
DERIVED = sorted(
    path
    for folder in ("proxies/cluster", "kubernetes/overlays")
    for path in (ROOT / "deploy" / folder).rglob("*.yaml")
    if path != TESTED and "static_resources:" in path.read_text()
)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def endpoints(config: dict[str, Any]) -> list[tuple[str, int, str | None]]:
    """Host, port and name of each replica."""
    (cluster,) = config["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    return [
        (
            (address := each["endpoint"]["address"]["socket_address"])["address"],
            address["port_value"],
            each.get("metadata", {}).get("filter_metadata", {}).get("envoy.lb", {}).get("replica"),
        )
        for each in group["lb_endpoints"]
    ]


def routing(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what may differ: where replicas are, how they are found, and TLS."""
    (listener,) = config["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (cluster,) = config["static_resources"]["clusters"]
    del listener["address"]
    chain.pop("transport_socket", None)
    for name in ("type", "dns_refresh_rate", "dns_lookup_family", "transport_socket", "load_assignment"):
        cluster.pop(name, None)
    cluster["common_lb_config"].pop("consistent_hashing_lb_config", None)
    return config


def tls(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What clients and replicas see: the common part of both TLS contexts, and the name asked of replicas."""
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    down = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    up = cluster["transport_socket"]["typed_config"]
    assert down["@type"].endswith(".DownstreamTlsContext")
    assert up["@type"].endswith(".UpstreamTlsContext")
    return down["common_tls_context"], up["common_tls_context"]
