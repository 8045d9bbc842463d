"""Streams four sequences, step by step and side by side, with Triton's own client, over one stream.

    pip install 'tritonclient[grpc]'
    python examples/triton_client.py                        # serves a small model itself
    python examples/triton_client.py localhost:8500 MODEL

Prints a line a step: the sequence, its step index, and the output. `native_client.py` does the same work.
"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

SEQUENCES, STEPS = 4, 10


def run(target: str, model: str) -> None:
    """Run the sequences on `model` and print every output."""
    with triton.InferenceServerClient(target) as client:
        metadata = client.get_model_metadata(model)
        (described,), (output,) = metadata.inputs, metadata.outputs
        step_shape = described.shape[1:]  # the first dimension is the batch
        random = np.random.default_rng(1)
        x = random.standard_normal((SEQUENCES, STEPS, *step_shape)).astype(
            triton_to_np_dtype(described.datatype)
        )

        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for step in range(STEPS):
            for sequence in range(SEQUENCES):  # all are on their way before the first answer is awaited
                tensor = triton.InferInput(described.name, [1, *step_shape], described.datatype)
                tensor.set_data_from_numpy(x[sequence, step][None])
                client.async_stream_infer(
                    model,
                    [tensor],
                    request_id=f"{sequence} {step + 1}",
                    sequence_id=sequence + 1,  # 0 would be no sequence
                    sequence_start=step == 0,
                    sequence_end=step == STEPS - 1,
                )
            for _ in range(SEQUENCES):  # in the order of the requests
                result, error = answers.get(timeout=60)
                if error is not None:
                    raise error
                values = result.as_numpy(output.name).ravel()
                print(result.get_response().id, " ".join(f"{value:.6f}" for value in values))
        client.stop_stream()


def main(target: str = "", model: str = "GRU") -> None:
    """Run the sequences on a server's model, or on one that is served here: a GRU with random weights."""
    if target:
        run(target, model)
        return
    import streamcell
    from streamcell.models import build

    with streamcell.local(
        build({"kind": "gru", "input_size": 3, "hidden_size": 8, "output_size": 2})
    ) as client:
        run(client.target, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
