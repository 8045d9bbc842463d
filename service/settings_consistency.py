"""Checks that settings go together."""

from __future__ import annotations

from typing import Any

_KEY_BYTES = 32  # of a key that signs, at least


def check_consistent(settings: Any) -> None:
    """Check that these `Settings` make sense together.

    Raises:
        ValueError: they do not; the text names them and says what to do.
    """
    if settings.load_model and settings.model_control != "explicit":
        raise ValueError("load_model needs model_control = explicit: otherwise all models are loaded")
    if settings.durability == "process" and settings.journal_dir is None:
        raise ValueError("durability = process needs journal_dir: the folder that keeps the sessions")
    _check_store(settings)
    if (key := settings.snapshot_key_file) is not None and not (
        key.is_file() and key.stat().st_size >= _KEY_BYTES
    ):
        raise ValueError(f"snapshot_key_file: {key}: expected a file of at least {_KEY_BYTES} bytes")
    if 0 < settings.watchdog_s < 2:
        raise ValueError(
            "watchdog_s: expected 0 or at least 2 seconds: an idle thread shows progress once a second"
        )
    if settings.trace_ratio and settings.otlp_endpoint is None:
        raise ValueError("trace_ratio needs otlp_endpoint: the collector that gets the traces")
    if (
        settings.port
        and settings.port == settings.metrics_port
        and settings.metrics_host in (None, settings.host)
    ):
        raise ValueError(f"port and metrics_port are both {settings.port}: give them one each")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ValueError("tls_cert and tls_key go together: give both, or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ValueError("tls_client_ca needs tls_cert and tls_key")
    asks = settings.tls_client_ca or settings.token_file or settings.jwt_jwks
    if settings.websocket_port is not None and settings.tls_client_ca is not None:
        raise ValueError(
            "websocket_port does not go with tls_client_ca: a page has no certificate to show; use token_file or "
            "jwt_jwks, whose tokens a page can send"
        )
    if settings.websocket_port and settings.websocket_port in (settings.port, settings.metrics_port):
        raise ValueError(
            f"websocket_port is {settings.websocket_port}, as another port: give it one of its own"
        )
    if settings.policy_file is not None and asks is None:
        raise ValueError("policy_file needs tls_client_ca, token_file or jwt_jwks: else nobody has a tenant")
    if settings.settle_s and settings.frontends:
        raise ValueError("settle_s needs frontends = 0")
    if settings.admin is not None and asks is None and not settings.admin.startswith("unix:"):
        raise ValueError("admin needs tls_client_ca, token_file or jwt_jwks, or a Unix socket: unix:/PATH")
    if settings.jwt_jwks is not None and not (settings.jwt_issuer and settings.jwt_audience):
        raise ValueError(
            "jwt_jwks needs jwt_issuer and jwt_audience: else tokens for others would count here"
        )
    if (settings.metrics_tls_cert is None) != (settings.metrics_tls_key is None):
        raise ValueError("metrics_tls_cert and metrics_tls_key go together: give both, or neither")
    if settings.metrics_tls and settings.metrics_pair is None:
        raise ValueError("metrics_tls needs tls_cert and tls_key, or metrics_tls_cert and metrics_tls_key")


def _check_store(settings: Any) -> None:
    asked = settings.durability.startswith("store-")
    if asked and settings.store is None:
        raise ValueError(
            f"durability = {settings.durability} needs store: the Valkey that keeps the sessions"
        )
    if settings.store is None:
        for name in ("store_user", "store_password_file", "store_ca", "store_key_file"):
            if getattr(settings, name) is not None:
                raise ValueError(f"{name} needs store")
        return
    if not asked:
        raise ValueError("store needs durability = store-async or store-sync: else nothing is kept in it")
    if settings.frontends:
        raise ValueError("store needs frontends = 0: run several servers with one store instead")
    if settings.linger_s == 0:
        raise ValueError("store needs linger_s > 0: without it no session is resumable")
