"""Configurations of Envoy and HAProxy before the replicas of a cluster on this machine.

Both send a session's streams to the replica that its metadata `streamcell-session` gives, by a consistent hash, or to
the one that `streamcell-replica` names, and both ask each replica's health a few times a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_HOST = "127.0.0.1"
_SESSION, _REPLICA = "streamcell-session", "streamcell-replica"
_TYPE = "type.googleapis.com/envoy"
_MANAGER = f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


class Ports(NamedTuple):
    """A replica's ports of 127.0.0.1."""

    grpc: int
    agent: int  # of HAProxy's checks


def command(program: Path, file: Path) -> list[str | Path]:
    """How to start Envoy or HAProxy with a file of `envoy` or `haproxy`."""
    if program.name == "haproxy":
        return [program, "-db", "-f", file]
    return [
        program, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error",
    ]  # fmt: skip


def envoy(port: int, replicas: Mapping[str, Ports]) -> str:
    """Envoy's file: it listens on `port`. JSON, which Envoy reads as YAML."""
    named = {
        "name": "envoy.filters.http.header_to_metadata",
        "typed_config": {
            "@type": f"{_TYPE}.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [
                {
                    "header": _REPLICA,
                    "on_header_present": {
                        "metadata_namespace": "envoy.lb",
                        "key": "replica",
                        "type": "STRING",
                    },
                }
            ],
        },
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"},
    }
    route = {
        "cluster": "replicas",
        "timeout": "0s",
        "hash_policy": [{"header": {"header_name": _SESSION}, "terminal": True}],
        # Only calls that no replica has begun.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream",
            "num_retries": 3,
            "host_selection_retry_max_attempts": 64,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
        },
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "streamcell",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {"max_concurrent_streams": 20000},
        "http_filters": [named, router],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
            ]
        },
    }
    listener = {
        "name": "streamcell",
        "address": _address(port),
        "enable_reuse_port": False,  # a second Envoy on this port does not start
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    cluster = {
        "name": "replicas",
        "type": "STATIC",
        "connect_timeout": "0.5s",
        "lb_policy": "RING_HASH",
        "ring_hash_lb_config": {"minimum_ring_size": 1024},
        "lb_subset_config": {
            "fallback_policy": "ANY_ENDPOINT",
            "subset_selectors": [{"keys": ["replica"]}],
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {
            "thresholds": [{"max_requests": 1000000, "max_pending_requests": 1000000, "max_retries": 1000}]
        },
        "typed_extension_protocol_options": _HTTP2,
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.25s",
                "no_traffic_interval": "0.25s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "load_assignment": {
            "cluster_name": "replicas",
            "endpoints": [{"lb_endpoints": [_endpoint(*each) for each in replicas.items()]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def _endpoint(name: str, ports: Ports) -> dict[str, Any]:
    return {
        "endpoint": {"address": _address(ports.grpc)},
        "metadata": {"filter_metadata": {"envoy.lb": {"replica": name}}},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": _HOST, "port_value": port}}


def haproxy(port: int, replicas: Mapping[str, Ports]) -> str:
    """HAProxy's file: it listens on `port`."""
    servers = [
        f"  server {name} {_HOST}:{ports.grpc} id {number} port {ports.agent} agent-port {ports.agent}"
        for number, (name, ports) in enumerate(replicas.items(), 1)
    ]
    return f"""global
  noreuseport
  tune.h2.max-concurrent-streams 20000
defaults
  mode http
  timeout connect 500ms
  timeout check 2s
  timeout client 1h
  timeout server 1h
frontend streamcell
  bind {_HOST}:{port} proto h2
  default_backend replicas
backend replicas
  balance hdr({_SESSION})
  hash-type consistent sdbm avalanche
  use-server %[req.hdr({_REPLICA})] if {{ req.hdr({_REPLICA}) -m found }}
  force-persist if {{ req.hdr({_REPLICA}) -m found }}
  retries 3
  option redispatch 1
  retry-on conn-failure
  option tcp-check
  tcp-check expect rstring ^(ready|drain)
  default-server proto h2 check inter 250ms fall 2 rise 1 agent-check agent-inter 250ms on-marked-down shutdown-sessions
{chr(10).join(servers)}
"""
