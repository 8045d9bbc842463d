"""Ports for programs that cannot choose one themselves and tell which."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A free port of 127.0.0.1 that the kernel gives to nobody: a test beside this one could get any other at once."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
