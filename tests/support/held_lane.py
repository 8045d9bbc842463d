"""A server on the fast lane that can be held up: `python -m tests.support.held_lane SIZE`, with turns of SIZE messages.

It runs in a process without clients, so that only its serving thread reads its sockets. It prints its port. The message
`wait` holds that thread up: it prints `held`, and goes on after a line on its standard input. The message `order` is
answered with the tenants of all messages so far, in the order in which they were read. SIZE 0: tenants take no turns.
"""

from __future__ import annotations

import sys
from typing import Any

from streamcell.service.transport.grpc_polling import read_on_serving_thread

if __name__ == "__main__":
    read_on_serving_thread()  # before grpcio is imported

import grpc

from streamcell.service.access.access_errors import NotAuthenticated
from streamcell.service.access.identity import Identity
from streamcell.service.transport.fast_lane import FastLane
from tests.support.lanes import Echo

order: list[str] = []


def say(text: str) -> None:
    """Tell the process that started this one."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Noting(Echo):
    """Notes whose message came."""

    def on_message(self, data: bytes) -> bool:
        """Answer it."""
        if data == b"order":
            self.call.reply(" ".join(order).encode())
            return True
        order.append(self.call.caller.tenant)
        if data == b"wait":
            say("held")
            sys.stdin.readline()
        return super().on_message(data)


def check(metadata: Any, peer: Any) -> Identity:
    """The caller is of the tenant that it names."""
    tenant = dict(metadata).get("tenant")
    if tenant is None:
        raise NotAuthenticated("nobody")
    return Identity(str(tenant), "", operator=False)


def main(size: int) -> None:
    """Serve until the standard input ends."""
    lane = FastLane()
    lane.guard.ask(check, lambda error: None)
    if size:
        lane.take_turns(lambda tenant: size)
    server = lane.server()
    methods = {"Stream": lane.stream(Noting)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(str(port))
    server.wait_for_termination()


if __name__ == "__main__":
    main(int(sys.argv[1]))
