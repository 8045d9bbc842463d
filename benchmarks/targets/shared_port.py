"""`streamcell serve` on a port that other servers take connections on, too (SO_REUSEPORT).

`python -m streamcell.benchmarks.targets.shared_port PORT serve …` starts one of them. They know nothing of each other:
each has its own engine and its own sessions, and the kernel deals out connections. `streamcell serve` itself refuses a
port that is taken, so that nobody starts two servers by mistake.
"""

from __future__ import annotations

import sys
from functools import partial

import streamcell.service.server
from streamcell.cli.main import app
from streamcell.service.transport.grpc_server import Transport


def main() -> None:
    """Run the command line with a server that shares PORT."""
    port = int(sys.argv.pop(1))
    setattr(streamcell.service.server, "Transport", partial(Transport, port=port))  # noqa: B010 (a class's name)
    app()


if __name__ == "__main__":
    main()
