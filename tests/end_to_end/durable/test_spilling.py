"""A server with twenty times more sessions than rows: every kind of session is as if it had never left the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from tests.support.infer_requests import request, stub
from tests.support.waiting import waited

ROWS, SESSIONS = 4, 80
FLAGS = ("--slots", str(ROWS), "--max-sessions", str(SESSIONS), "--max-chunk", "4")
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="module")
def few(start_server: Callable[..., ServerProcess], folder: Path) -> ServerProcess:
    return start_server(folder, *FLAGS)


@pytest.mark.conformance
def test_sessions_of_every_kind_have_their_own_sums(few: ServerProcess, eventually: Eventually) -> None:
    server = few
    rng = np.random.default_rng(5)
    infer = stub(server.target).ModelInfer
    with ExitStack() as stack:
        client = stack.enter_context(connect(server.target))
        usual = [stack.enter_context(client.session("sum", multiplex=False)) for _ in range(30)]
        resumable = [stack.enter_context(client.session("sum", resume=True)) for _ in range(14)]
        pool = stack.enter_context(client.pool("sum", 20))
        totals = dict.fromkeys([*map(id, usual), *map(id, resumable), *range(20)], 0)
        sequences = {f"s{number}": 0 for number in range(16)}
        generated = set[int]()

        def one(sessions: list[object]) -> None:
            session = sessions[rng.integers(len(sessions))]
            x = rng.integers(1, 9, rng.integers(1, 7))
            y = session.run(x[:, None].astype(np.float32))  # type: ignore[attr-defined]
            assert y[:, 0].tolist() == (totals[id(session)] + np.cumsum(x)).tolist()
            totals[id(session)] += int(x.sum())

        def members() -> None:
            some = np.sort(rng.choice(20, rng.integers(1, 20), replace=False))
            x = rng.integers(1, 9, len(some))
            for member, each in zip(some.tolist(), x.tolist(), strict=True):
                totals[member] += each
            y = pool.step(x[:, None].astype(np.float32), some)
            assert y[:, 0].tolist() == [totals[member] for member in some.tolist()]

        def generation() -> None:
            session = usual[rng.integers(len(usual))]
            if id(session) not in generated:
                generated.add(id(session))
                first = totals[id(session)] + 3
                outputs = session.generate(4, first=[3.0]).all().outputs
                assert np.ravel(outputs).tolist() == [first, 2 * first, 4 * first, 8 * first]
                totals[id(session)] = 8 * first

        def sequence() -> None:
            name = f"s{rng.integers(len(sequences))}"
            x, begins = int(rng.integers(1, 9)), not sequences[name]
            answer = infer(
                request(np.array([[x]], np.float32), "sum", sequence_id=name, sequence_start=begins)
            )
            sequences[name] += x
            assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [sequences[name]]

        for _ in range(500):
            kind = int(rng.integers(10))
            if kind < 4:
                one(usual)  # type: ignore[arg-type]
            elif kind < 6:
                one(resumable)  # type: ignore[arg-type]
            elif kind < 8:
                sequence()
            else:
                (members, generation)[kind - 8]()
        spills, returns = (server.metric(f"streamcell_{name}_total") for name in ("spills", "spill_returns"))
        assert spills >= returns > 300
        assert SESSIONS - 2 * ROWS <= server.metric("streamcell_spilled_sessions") <= SESSIONS
        assert server.metric("streamcell_spill_return_seconds_count") > 0
    for name in sequences:
        infer(request(np.zeros((1, 1), np.float32), "sum", sequence_id=name, sequence_end=True))
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)
    assert waited(lambda: server.metric("streamcell_spilled_sessions") == 0)


@pytest.mark.conformance
def test_a_detached_session_is_spilled_and_resumed(few: ServerProcess) -> None:
    with connect(few.target) as client:
        session = client.session("sum", resume=True)
        session.__enter__()
        assert session.step([5.0]).tolist() == [5.0]
        ticket = session.ticket()
        session.cancel()
        for _ in range(2 * ROWS):
            with client.session("sum") as other:
                other.step([1.0])
        with client.pool("sum", 2 * ROWS) as pool:
            assert pool.step(np.ones((2 * ROWS, 1), np.float32)).tolist() == [[1.0]] * (2 * ROWS)
            assert few.metric("streamcell_spilled_sessions") > 0
        with client.resume(ticket) as resumed:
            assert resumed.step([2.0]).tolist() == [7.0]


@pytest.mark.conformance
def test_spilled_sessions_are_copied_and_put_back(few: ServerProcess) -> None:
    with (
        connect(few.target) as client,
        client.pool("sum", 3 * ROWS) as others,
        client.session("sum", resume=True) as session,
    ):

        def spill() -> None:
            """All others step, so whoever is not among them leaves the device."""
            others.step(np.ones((3 * ROWS, 1), np.float32))

        assert session.step([5.0]).tolist() == [5]
        spill()
        kept = session.snapshot()
        spill()
        with session.fork() as fork:
            spill()
            assert fork.step([10.0]).tolist() == [15]
            spill()
            assert session.step([1.0]).tolist() == [6]
            spill()
            session.restore(kept)
            spill()
            assert session.step([2.0]).tolist() == [7]
            assert fork.step([1.0]).tolist() == [16]
        with client.restore(kept) as again:
            spill()
            assert again.step([3.0]).tolist() == [8]
        assert others.step(np.zeros((3 * ROWS, 1), np.float32)).tolist() == [[7.0]] * (3 * ROWS)
