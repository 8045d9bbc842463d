"""Triton's streaming clients, blocking and asyncio, at work on many sequences at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

Steps = np.ndarray[Any, Any]
Expected = Callable[[str, Steps], Steps]

SEQUENCES, STEPS = 256, 30


@pytest.fixture(scope="module")
def x() -> Steps:
    return np.random.default_rng(9).standard_normal((SEQUENCES, STEPS, 3)).astype(np.float32)


def _input(row: Steps, module: Any) -> Any:
    given = module.InferInput("x", list(row.shape), "FP32")
    given.set_data_from_numpy(row)
    return given


@pytest.mark.parametrize("streams", [1])
def test_the_blocking_client_runs_256_sequences(
    served: Any, open_talk: Any, expected: Expected, x: Steps, streams: int
) -> None:
    talks = [open_talk(served.target) for _ in range(streams)]
    y = np.zeros((SEQUENCES, STEPS, 2), np.float32)
    # A request a client waits for is slow; so each stream is a few rounds of its sequences ahead.
    for t in range(STEPS + 4):
        for sequence in range(SEQUENCES):
            talk = talks[sequence % streams]
            if t < STEPS:
                talk.send(
                    "lstm", x[sequence, t : t + 1], sequence_id=10**12 + sequence, sequence_start=t == 0,
                    sequence_end=t == STEPS - 1,
                )  # fmt: skip
            if t >= 4:
                y[sequence, t - 4] = talk.y()
    np.testing.assert_allclose(y, expected("lstm", x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("streams", [8])
def test_the_asyncio_client_runs_256_sequences(
    served: Any, expected: Expected, x: Steps, streams: int
) -> None:
    y = np.zeros((SEQUENCES, STEPS, 2), np.float32)

    async def run(client: Any, first: int) -> None:
        mine = range(first, SEQUENCES, streams)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for t in range(STEPS):
                for sequence in mine:
                    row = x[sequence, t : t + 1]
                    yield {
                        "model_name": "gru",
                        "inputs": [_input(row, tritonclient.grpc.aio)],
                        "request_id": f"{sequence}/{t}",
                        "sequence_id": f"sequence {sequence}",
                        "sequence_start": t == 0,
                        "sequence_end": t == STEPS - 1,
                    }

        wanted = ((sequence, t) for t in range(STEPS) for sequence in mine)
        async for result, error in client.stream_infer(requests()):
            assert error is None
            sequence, t = next(wanted)
            assert result.get_response().id == f"{sequence}/{t}"
            y[sequence, t] = result.as_numpy("y")
        assert next(wanted, None) is None

    async def everything() -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(served.target) as client:
            await asyncio.gather(*(run(client, first) for first in range(streams)))

    asyncio.run(everything())
    np.testing.assert_allclose(y, expected("gru", x), rtol=1e-5, atol=1e-5)


def test_the_asyncio_client_sees_errors_between_answers(served: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for name in ("first", "bad", "last"):
            row = np.zeros((1, 4 if name == "bad" else 3), np.float32)
            flags = {"sequence_id": 77 if name == "bad" else 78, "sequence_start": name != "last"}
            yield {
                "model_name": "lstm",
                "inputs": [_input(row, tritonclient.grpc.aio)],
                "request_id": name,
                **flags,
                "sequence_end": name == "last",
            }

    async def everything() -> list[Any]:
        async with tritonclient.grpc.aio.InferenceServerClient(served.target) as client:
            return [each async for each in client.stream_infer(requests())]

    first, bad, last = asyncio.run(everything())
    assert first[1] is last[1] is None
    assert first[0].get_response().id == "first"
    assert isinstance(bad[1], InferenceServerException)
    assert bad[1].message().startswith("[request id: bad] [sequence: 77] INVALID_ARGUMENT WRONG_SHAPE: ")


def test_a_caller_like_perf_analyzer_finds_what_it_needs(
    served: Any, open_talk: Any, eventually: Any
) -> None:
    """Its order of calls, and the fields that it reads."""
    with tritonclient.grpc.InferenceServerClient(served.target) as client:
        metadata = client.get_model_metadata("rnn")
        config = client.get_model_config("rnn").config
        assert config.max_batch_size > 0
        shapes = {}
        for tensor in (*metadata.inputs, *metadata.outputs):
            assert tensor.shape[0] == -1
            shapes[tensor.name] = [1, *tensor.shape[1:]]
            assert all(size > 0 for size in shapes[tensor.name])
        assert {each.name for each in config.input} <= {each.name for each in metadata.inputs}
        assert {each.name for each in config.output} <= {each.name for each in metadata.outputs}
        for given, told in zip(config.input, metadata.inputs, strict=True):
            assert list(given.dims) == list(told.shape)[1:]
        assert config.HasField("sequence_batching")
        assert not config.model_transaction_policy.decoupled
        assert "statistics" in client.get_server_metadata().extensions
        (before,) = client.get_inference_statistics("rnn").model_stats
        int(before.version)
        talks = [open_talk(served.target) for _ in range(4)]
        for t in range(10):
            for sequence, talk in enumerate(talks, 1):
                row = np.ones(shapes["x"], np.float32)
                flags = {
                    "sequence_start": t == 0,
                    "sequence_end": t == 9,
                    "enable_empty_final_response": True,
                }
                talk.send("rnn", row, request_id=f"{sequence}_{t}", sequence_id=sequence, **flags)
        for talk in talks:
            for _ in range(10):
                assert list(talk.y().shape) == shapes["y"]

        def figures() -> Any:
            (found,) = client.get_inference_statistics("rnn").model_stats
            return found

        # They follow the replies.
        assert eventually(lambda: figures().inference_count == before.inference_count + 40)
        after = figures()
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            then, now = getattr(before.inference_stats, name), getattr(after.inference_stats, name)
            assert now.count == then.count + 40, name
            assert now.ns > then.ns, name
        assert 0 < after.execution_count - before.execution_count <= 40
        assert after.last_inference > 0
        assert after.inference_stats.fail.count == before.inference_stats.fail.count
        everything = client.get_inference_statistics().model_stats
        assert {"gru", "lstm", "mlp", "rnn"} <= {each.name for each in everything}
