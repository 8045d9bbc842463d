"""Streams four sequences, step by step and side by side, with StreamCell's own client.

    python examples/native_client.py localhost:8500 MODEL

Prints a line a step: the sequence, its step index, and the output. `triton_client.py` does the same work.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np

from streamcell.client import connect

SEQUENCES, STEPS = 4, 10


def main(target: str, model: str) -> None:
    """Run the sequences on `model` and print every output."""
    with connect(target) as client, ExitStack() as open_sessions:
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


if __name__ == "__main__":
    main(*sys.argv[1:])
