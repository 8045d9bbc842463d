"""`python -m tests.support.grpc_first serve …`: StreamCell in a program that has imported grpcio before.

That program asks for nothing of grpcio. The processes that it starts have to do so themselves.
"""

from __future__ import annotations

import runpy

import grpc  # noqa: F401

from streamcell.service.transport import grpc_polling

if __name__ == "__main__":
    grpc_polling.read_on_serving_thread = lambda: None
    runpy.run_module("streamcell.cli", run_name="__main__", alter_sys=True)
