"""The two ways in."""

from __future__ import annotations

from typing import TypedDict, Unpack

from streamcell.client.aio.client import AsyncClient
from streamcell.client.blocking.client import Client

from .channel import TLS, Metadata, Options


class ConnectOptions(TypedDict, total=False):
    """The keyword arguments of `connect`: the fields of `Options`."""

    timeout_s: float
    tls: TLS
    metadata: Metadata
    keepalive_s: float
    keepalive_timeout_s: float
    wait_for_ready: bool
    options: list[tuple[str, object]]


def connect(target: str, **options: Unpack[ConnectOptions]) -> Client:
    """A blocking client of the server at `target`, such as "localhost:8500"; `Options` says what else it takes.

    Nothing is sent yet. Use it in a `with` statement, or `close` it.
    """
    return Client(target, Options(**options))


def connect_async(target: str, **options: Unpack[ConnectOptions]) -> AsyncClient:
    """`connect` for asyncio: an `async with` client, to be made while its event loop runs.

    gRPC supports one event loop a process.
    """
    return AsyncClient(target, Options(**options))
