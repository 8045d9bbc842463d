"""`ModelStatistics` as Triton's clients read them: the parts of a request's time never exceed the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect

from .conftest import Talk, tensor

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
SEQUENCES, STEPS = 8, 20


def read(client: Any, model: str) -> Any:
    (found,) = client.get_inference_statistics(model).model_stats
    return found


def check(found: Any) -> None:
    """What holds at any moment, in whole nanoseconds."""
    stats = found.inference_stats
    assert {getattr(stats, name).count for name in PARTS} == {stats.success.count}
    assert sum(getattr(stats, name).ns for name in PARTS) <= stats.success.ns
    assert [each.batch_size for each in found.batch_stats] == sorted(
        {each.batch_size for each in found.batch_stats}
    )
    for each in found.batch_stats:
        counts = {getattr(each, name).count for name in PARTS[1:]}
        assert counts == {each.compute_infer.count} != {0}
    assert sum(each.compute_infer.count for each in found.batch_stats) == found.execution_count


def since(after: Any, before: Any) -> dict[str, int]:
    names = (*PARTS, "success")
    return {
        name: getattr(after.inference_stats, name).ns - getattr(before.inference_stats, name).ns
        for name in names
    }


@pytest.mark.conformance
def test_the_parts_never_exceed_the_whole_while_streams_chunks_and_calls_run(
    served: Any, triton: Any, talk: Talk, eventually: Any
) -> None:
    before = read(triton, "lstm")
    seen: list[Any] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(read(triton, "lstm"))

    def native() -> None:
        """Through a front end's rings, if there are any: single steps, and a message of several runs."""
        with connect(served.target) as client, client.session("lstm") as session:
            for _ in range(STEPS):
                session.step(np.ones(3, np.float32))
            session.run(np.ones((150, 3), np.float32))

    threads = [threading.Thread(target=each) for each in (watch, native)]
    for thread in threads:
        thread.start()
    for t in range(STEPS):
        for sequence in range(SEQUENCES):
            rows = np.ones((1, 150, 3) if t == 7 else (1, 3), np.float32)  # several runs, and one
            talk.send(
                "lstm", rows, sequence_id=8000 + sequence, sequence_start=t == 0, sequence_end=t == STEPS - 1
            )
    for _ in range(SEQUENCES * STEPS):
        talk.get()
    triton.infer("lstm", [tensor(np.ones((5, 4, 3), np.float32))])
    threads[1].join()
    requests = before.inference_stats.success.count + SEQUENCES * STEPS + STEPS + 1 + 1
    assert eventually(lambda: read(triton, "lstm").inference_stats.success.count == requests)
    done.set()
    threads[0].join()
    for each in (before, *seen, read(triton, "lstm")):
        check(each)
    took = since(read(triton, "lstm"), before)
    assert min(took.values()) > 0
    # What no batch spent on a request, its queue spent: nothing is lost between the parts.
    assert sum(took[name] for name in PARTS) == took["success"]


@pytest.mark.conformance
def test_frames_of_several_runs_are_divided_too(served: Any, triton: Any, eventually: Any) -> None:
    before = read(triton, "gru")
    with connect(served.target) as client, client.pool("gru", 5) as pool:
        for _ in range(5):
            pool.step(np.ones((5, 3), np.float32))
        pool.run(np.ones((5, 150, 3), np.float32))
    inferences = before.inference_count + 6 * 5
    assert eventually(lambda: read(triton, "gru").inference_count == inferences)
    check(read(triton, "gru"))
    took = since(read(triton, "gru"), before)
    assert min(took.values()) > 0
    assert sum(took[name] for name in PARTS) == took["success"]


@pytest.mark.conformance
def test_a_client_s_time_contains_the_server_s(triton: Any, eventually: Any) -> None:
    """What is left is the network's: perf_analyzer shows it."""
    before = read(triton, "mlp")
    took_ns = 0
    for _ in range(10):
        began_ns = time.perf_counter_ns()
        triton.infer("mlp", [tensor(np.ones((1, 3), np.float32))])
        took_ns += time.perf_counter_ns() - began_ns
    count = before.inference_stats.success.count + 10
    assert eventually(lambda: read(triton, "mlp").inference_stats.success.count == count)
    assert 0 < since(read(triton, "mlp"), before)["success"] < took_ns


def test_runs_are_counted_by_their_rows(
    start_server: Callable[..., Any], models_dir: Any, eventually: Any
) -> None:
    import tritonclient.grpc

    server = start_server(models_dir, "--max-batch", "4")
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        for _ in range(3):
            client.infer("gru", [tensor(np.ones((1, 1, 3), np.float32))])
        for _ in range(2):
            client.infer("gru", [tensor(np.ones((9, 1, 3), np.float32))])
        assert eventually(lambda: read(client, "gru").inference_count == 3 + 2 * 9)
        found = read(client, "gru")
        check(found)
        sizes = {each.batch_size: each.compute_infer.count for each in found.batch_stats}
        # Nine rows take three runs or more of four rows at most.
        assert set(sizes) <= {1, 2, 3, 4}
        assert sizes[1] >= 3
        assert sum(rows * runs for rows, runs in sizes.items()) == found.inference_count
        assert found.inference_stats.success.count == 5
        for each in found.batch_stats:
            assert each.compute_input.ns > 0 < each.compute_output.ns
            assert each.compute_infer.ns > 0
        # Models that nobody has called have run nothing.
        assert not read(client, "rnn").batch_stats
