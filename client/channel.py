"""Options of a connection: TLS, keepalive, message sizes. Both clients share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

# False: plain text. True: the system's root certificates. A path: a PEM file of root certificates.
TLS: TypeAlias = bool | str | Path | grpc.ChannelCredentials
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The keyword arguments of `connect`.

    Attributes:
        timeout_s: time limit of each answer: to a unary call, a session's opening, a message. `math.inf` for none.
        tls: False for plain text, True for TLS with the system's roots, a path of a PEM file with the roots to
            trust, or `grpc.ChannelCredentials` (for client certificates).
        metadata: sent with every call, for example ``(("authorization", "Bearer …"),)``.
        keepalive_s: seconds without data before a connection with an open session is pinged; `math.inf` for never.
        keepalive_timeout_s: seconds to wait for the answer to a ping before the connection counts as broken.
        multiplex: carry a model's sessions on one stream from the third live one on. Many sessions then cost a fraction
            of the CPU, in the server too; `Session.id` is their stream's, and ends all of them in `close_session`.
        wait_for_ready: wait for a server that is not up yet, within `timeout_s`, instead of failing at once. With
            several targets the client goes to the next one instead.
        direct: sessions with `resume` that were opened through a proxy go on without it, at the address that their
            server tells (`--advertise`), and come back at any error. With the same TLS, `metadata` and `options`: the
            server's certificate must name that address. Only for servers that you trust with the credential.
        options: further gRPC channel options; they override the options above.
    """

    timeout_s: float = 30.0
    tls: TLS = False
    metadata: Metadata = ()
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    multiplex: bool = False
    wait_for_ready: bool = False
    direct: bool = False
    options: Sequence[tuple[str, Any]] = ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials of the channel; None for plain text. Raises OSError if the PEM file cannot be read."""
        if isinstance(self.tls, bool):
            return grpc.ssl_channel_credentials() if self.tls else None
        if isinstance(self.tls, (str, Path)):
            return grpc.ssl_channel_credentials(Path(self.tls).read_bytes())
        return self.tls

    def arguments(self) -> list[tuple[str, Any]]:
        """gRPC channel arguments."""
        arguments: dict[str, Any] = {
            # No limit here: the server bounds both, and replies can be larger than requests.
            "grpc.max_receive_message_length": -1,
            "grpc.max_send_message_length": -1,
        }
        if math.isfinite(self.keepalive_s):
            arguments["grpc.keepalive_time_ms"] = round(self.keepalive_s * 1000)
            arguments["grpc.keepalive_timeout_ms"] = round(self.keepalive_timeout_s * 1000)
        arguments.update(self.options)
        return list(arguments.items())

    def wait_s(self, timeout_s: float | None) -> float:
        """Seconds to wait for an answer: `timeout_s`, or this client's limit if it is None; infinite for no limit."""
        return self.timeout_s if timeout_s is None else timeout_s

    def of_call(self, deadline_s: float, metadata: Metadata = ()) -> dict[str, Any]:
        """A gRPC call's keyword arguments: its deadline (infinite for none), this client's metadata and `metadata`."""
        return {
            "timeout": deadline_s if math.isfinite(deadline_s) else None,
            "metadata": (*self.metadata, *metadata),
            "wait_for_ready": self.wait_for_ready,
        }
