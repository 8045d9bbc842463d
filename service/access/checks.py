"""The types of a check of callers, which authentication and the lanes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .identity import Identity

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
# What TLS knows of the peer, such as its certificate's subject alternative names: lists of bytes, though grpcio's types
# say something else.
Peer: TypeAlias = Callable[[], Mapping[str, Any]]
# The caller of a call with this metadata from this peer; raises ServiceError for a call to refuse.
Check: TypeAlias = Callable[[Metadata, Peer], Identity]
