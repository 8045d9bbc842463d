"""Streams four sequences, step by step and side by side, with StreamCell's own client.

    python examples/native_client.py                        # serves a small model itself
    python examples/native_client.py localhost:8500 MODEL

Prints a line a step: the sequence, its step index, and the output. `triton_client.py` does the same work.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np

import streamcell
from streamcell.client import Client, connect

SEQUENCES, STEPS = 4, 10


def run(client: Client, model: str) -> None:
    """Run the sequences on `model` and print every output."""
    with ExitStack() as open_sessions:
        (tensor,) = client.model(model).inputs
        random = np.random.default_rng(1)
        x = random.standard_normal((SEQUENCES, STEPS, *tensor.step_shape)).astype(tensor.dtype)

        # A session a sequence: the server opens it with its first step and keeps its state until it is closed.
        sessions = [open_sessions.enter_context(client.session(model)) for _ in range(SEQUENCES)]
        for step in range(STEPS):
            for session in range(SEQUENCES):  # all are on their way before the first answer is awaited
                sessions[session].send(x[session, step])
            for session in range(SEQUENCES):
                y = sessions[session].receive()
                index = sessions[session].step_index
                print(session, index, " ".join(f"{value:.6f}" for value in y.ravel()))


def main(target: str = "", model: str = "GRU") -> None:
    """Run the sequences on a server's model, or on one that is served here: a GRU with random weights."""
    if target:
        with connect(target) as client:
            run(client, model)
        return
    from streamcell.models import build

    with streamcell.local(
        build({"kind": "gru", "input_size": 3, "hidden_size": 8, "output_size": 2})
    ) as client:
        run(client, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
