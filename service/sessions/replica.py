"""This server among those that stand behind one proxy."""

from __future__ import annotations

from dataclasses import dataclass

from streamcell.service.settings import Settings


@dataclass(frozen=True, slots=True)
class Replica:
    """What clients are told of the server that has their session.

    Attributes:
        name: for the metadata `streamcell-replica`; empty: it has none.
        address: where clients reach it without a proxy, "host:port"; empty: only through one.
    """

    name: str = ""
    address: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Replica:
        """The server with these settings."""
        return cls(settings.replica_name, settings.advertise or "")
