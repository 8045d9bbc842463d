"""DESIGN's invariants under random interleavings, on the real engine: sessions never see each other, state advances
exactly once for each accepted step or not at all, no slot is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError, SessionLimit
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.repository.model_file import discover
from streamcell.service.sessions.session import Output, Session, Work
from streamcell.service.settings import Settings

MAX_SESSIONS, MAX_BATCH, MAX_CHUNK, QUEUE = 6, 4, 4, 3
PATIENCE_S = 60


class Sequence:
    """One session's client: what it sent, what came back, and what PyTorch gives for it alone."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.sent: list[np.ndarray] = []
        self.outputs: list[Output] = []
        self.answers: list[tuple[list[bytes], int, int]] = []
        self.failure: ServiceError | None = None
        self.changed = threading.Condition()
        self.session: Session = model.batcher.open("test", self)

    def send(self, x: np.ndarray, output: Output) -> None:
        self.sent.append(x)
        self.outputs.append(output)
        self.model.batcher.submit(self.session, Work((x.tobytes(),), len(x), output, len(self.sent) - 1, 0.0))

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        with self.changed:
            assert work.tag == len(self.answers), "answers come in the order of the messages"
            self.answers.append((outputs, steps, step_index))
            self.changed.notify_all()

    def resume(self) -> None:
        pass

    def fail(self, error: ServiceError) -> None:
        with self.changed:
            self.failure = error
            self.model.batcher.end(self.session)
            self.changed.notify_all()

    def settle(self, answers: int) -> None:
        """Wait until `answers` messages have been answered, or the session has failed."""
        with self.changed:
            done = self.changed.wait_for(
                lambda: len(self.answers) >= answers or self.failure is not None, PATIENCE_S
            )
        assert done, f"{len(self.answers)} of {answers} answers"

    def check(self, module: torch.nn.Module) -> None:
        """Every answer equals PyTorch's for this session run alone."""
        if not self.answers:
            return
        x = torch.from_numpy(np.concatenate(self.sent)[None])
        with torch.no_grad():
            y = module(x)[0][0].numpy()
        at = 0
        for message, output, (tensors, steps, step_index) in zip(
            self.sent, self.outputs, self.answers, strict=False
        ):
            whole = y[at : at + len(message)]
            at += len(message)
            wanted = {Output.ALL: whole, Output.LAST: whole[-1:], Output.NONE: whole[:0]}[output]
            assert steps == len(wanted)
            if output is not Output.NONE:
                got = np.frombuffer(tensors[0], np.float32).reshape(wanted.shape)
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
            else:
                assert tensors == []
            assert step_index == at


@pytest.fixture(scope="module", params=["ragged", "fixed shapes"])
def lanes(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[dict[str, LoadedModel]]:
    configured = Settings.load(
        models=models_dir,
        max_sessions=MAX_SESSIONS,
        max_batch=MAX_BATCH,
        max_chunk=MAX_CHUNK,
        queue_messages=QUEUE,
        fixed_shapes=request.param == "fixed shapes",
    )
    loaded = {file.name: load(file, configured, Device()) for file in discover(models_dir)}
    yield loaded
    for model in loaded.values():
        model.runner.stop()


SEND = st.tuples(st.just("send"), st.integers(0, 7), st.integers(1, 11), st.sampled_from(list(Output)))
OTHER = st.tuples(
    st.sampled_from(["open", "open", "close", "cancel", "spoil", "settle"]),
    st.integers(0, 7),
    st.integers(1, 11),
    st.sampled_from(list(Output)),
)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "mlp", "cnn", "tcn", "deep"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(plan=st.lists(SEND | SEND | OTHER, min_size=5, max_size=60), seed=st.integers(0, 2**31))
def test_sessions_are_as_if_alone(
    lanes: dict[str, LoadedModel],
    modules: dict[str, torch.nn.Module],
    kind: str,
    plan: list[tuple[str, int, int, Output]],
    seed: int,
) -> None:
    model, module = lanes[kind], modules[kind]
    noise = np.random.default_rng(seed)
    live: list[Sequence] = [Sequence(model), Sequence(model)]
    everyone = list(live)
    for act, which, steps, output in plan:
        if act == "open":
            try:
                live.append(Sequence(model))
                everyone.append(live[-1])
            except SessionLimit:
                assert model.batcher.live == MAX_SESSIONS
            continue
        if not live:
            continue
        one = live[which % len(live)]
        if act == "send":
            one.send(noise.standard_normal((steps, 3)).astype(np.float32), output)
        elif act == "spoil":
            before = len(one.sent)
            bad = np.ones((min(steps, MAX_CHUNK), 3), np.float32)
            bad[noise.integers(len(bad)), noise.integers(3)] = [np.nan, np.inf, -np.inf][which % 3]
            one.send(bad, output)
            one.settle(before + 1)
            assert one.failure is not None
            assert one.failure.reason == "NON_FINITE_INPUT"
            # Messages before the bad one were answered; the bad one was not applied.
            assert len(one.answers) == before
            assert one.session.step_index == sum(map(len, one.sent[:before]))
            one.sent.pop()
            live.remove(one)
        else:
            if act != "cancel":
                one.settle(len(one.sent))
            if act != "settle":
                model.batcher.end(one.session)
                live.remove(one)
    for one in live:
        one.settle(len(one.sent))
        assert one.failure is None
        assert one.session.step_index == sum(map(len, one.sent))
        model.batcher.end(one.session)
    for one in everyone:
        one.check(module)
    # Work in flight for cancelled sessions lands; then every slot is back.
    probe_until_free(model)
    assert model.batcher.live == model.batcher.capacity.slots_used == 0


def probe_until_free(model: LoadedModel) -> None:
    """Run one more session through: once it is answered, every earlier batch has landed."""
    for _ in range(100 * PATIENCE_S):
        try:
            probe = Sequence(model)
        except SessionLimit:
            threading.Event().wait(0.01)
            continue
        probe.send(np.zeros((1, 3), np.float32), Output.ALL)
        probe.settle(1)
        model.batcher.end(probe.session)
        return
    raise AssertionError("slots were not given back")
