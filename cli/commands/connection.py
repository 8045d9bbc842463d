"""How a command reaches a server: the options that say it, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from typer import Option

if TYPE_CHECKING:
    from streamcell.client import Client

LOCAL = "localhost:8500"
Target: TypeAlias = Annotated[str, Option(envvar="STREAMCELL_TARGET", help="Address of the server.")]
Tls: TypeAlias = Annotated[bool, Option("--tls", help="Use TLS with the system's root certificates.")]
TlsRoots: TypeAlias = Annotated[
    Path | None, Option(help="Use TLS with the root certificates of this PEM file.")
]
BearerFile: TypeAlias = Annotated[
    Path | None, Option(envvar="STREAMCELL_BEARER_FILE", help="Send the bearer token in this file.")
]


@dataclass(frozen=True)
class Place:
    """Where a server is, and how to speak to it."""

    target: str
    timeout: float
    tls: bool
    tls_roots: Path | None
    bearer_file: Path | None

    def connect(self) -> Client:
        """A client of the server.

        Raises:
            OSError: the file of the token or of the certificates cannot be read.
            StreamCellError: the target is none.
        """
        from streamcell.client import connect

        metadata: tuple[tuple[str, str], ...] = ()
        if self.bearer_file is not None:
            metadata = (("authorization", f"Bearer {self.bearer_file.read_text().strip()}"),)
        return connect(self.target, timeout_s=self.timeout, tls=self.tls_roots or self.tls, metadata=metadata)
