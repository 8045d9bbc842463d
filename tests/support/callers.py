"""Channels whose every call carries a token."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc

from .tokens import bearer


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _AddsMetadata(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def _with(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), *self._metadata)
        return continuation(
            _Details(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready,
                details.compression,
            ),
            request,
        )  # fmt: skip

    intercept_unary_unary = intercept_unary_stream = _with
    intercept_stream_unary = intercept_stream_stream = _with


def channel_with(target: str, metadata: Any) -> grpc.Channel:
    """A channel with a connection of its own, whose calls carry `metadata`."""
    channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
    return grpc.intercept_channel(channel, _AddsMetadata(metadata))


def channel_of(target: str, subject: str) -> grpc.Channel:
    """A channel whose calls carry the token of `tokens.token_file` for `subject`."""
    return channel_with(target, bearer(f"token-of-{subject}"))
