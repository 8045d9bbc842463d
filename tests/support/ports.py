"""Ports for programs that cannot choose one themselves and tell which."""

from __future__ import annotations

from streamcell.client.local_programs import free_port

__all__ = ["free_port"]
