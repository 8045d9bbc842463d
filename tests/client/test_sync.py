"""The blocking client against a real server: what it gives is what the PyTorch modules compute."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from streamcell.client import (
    Client,
    InvalidInput,
    ModelNotFound,
    NotFound,
    ServerDraining,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionNotFound,
    StreamCellError,
    Tensor,
    Unavailable,
    connect,
)
from streamcell.client.local_server import ServerProcess
from tests.support.certificates import self_signed

Modules = dict[str, torch.nn.Module]
KINDS = ("lstm", "gru", "rnn", "mlp", "cnn", "tcn", "deep")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def client(served: ServerProcess, shared: bool) -> Any:
    with connect(served.target) as client:
        client.session = partial(client.session, multiplex=shared)  # type: ignore[method-assign]
        yield client


def sequence(steps: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((steps, 3), dtype=np.float32)


def truth(module: torch.nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The module's outputs for one sequence [T, 3], or a batch [B, T, 3]."""
    with torch.inference_mode():
        batch = torch.from_numpy(x.reshape(-1, *x.shape[-2:]))
        y = module(batch)[0].numpy()
    return y.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_chunks_and_streams_give_what_pytorch_gives(
    client: Client, modules: Modules, kind: str
) -> None:
    x = sequence(40)
    expected = truth(modules[kind], x)
    with client.session(kind) as session:
        for t in range(5):
            np.testing.assert_allclose(session.step(x[t]), expected[t], **TOLERANCE)
        np.testing.assert_allclose(session.run(x[5:12]), expected[5:12], **TOLERANCE)
        streamed = np.stack(list(session.stream(x[12:30], window=7)))
        np.testing.assert_allclose(streamed, expected[12:30], **TOLERANCE)
        ragged = list(session.stream([x[30:33], x[33], x[34:40]]))
        assert [part.shape for part in ragged] == [(3, 2), (2,), (6, 2)]
        np.testing.assert_allclose(np.vstack(ragged), expected[30:], **TOLERANCE)
        assert session.step_index == 40


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_give_what_pytorch_gives(client: Client, modules: Modules, kind: str) -> None:
    x = np.stack([sequence(9, seed) for seed in range(4)])
    expected = truth(modules[kind], x)
    np.testing.assert_allclose(client.predict(kind, x), expected, **TOLERANCE)
    np.testing.assert_allclose(client.predict(kind, x[1]), expected[1], **TOLERANCE)
    last = client.predict(kind, x, output="last")
    assert last.shape == (4, 1, 2)
    np.testing.assert_allclose(last, expected[:, -1:], **TOLERANCE)
    with pytest.raises(InvalidInput, match=r"\[steps, 3\] or \[batch, steps, 3\], got \[3\]"):
        client.predict(kind, x[0, 0])


def test_a_session_says_what_it_takes_and_gives(client: Client) -> None:
    with client.session("lstm") as session:
        (x,), (y,) = session.inputs, session.outputs
        assert (x.name, x.dtype, x.step_shape) == ("x", "float32", (3,))
        assert (y.name, y.dtype, y.step_shape) == ("y", "float32", (2,))
        assert isinstance(x, Tensor)
        assert session.model == "lstm"
        assert session.version == "1"
        assert session.max_steps > 1
        assert session.idle_timeout_s > 0


def test_models_are_listed_with_their_cards(client: Client) -> None:
    models = {model.name: model for model in client.models()}
    assert set(models) == set(KINDS)
    lstm = client.model("lstm")
    assert (lstm.kind, [state.name for state in lstm.states]) == ("lstm", ["h", "c"])
    assert lstm.states[0].shape == (2, 16)
    assert lstm.card["name"] == "lstm"
    assert lstm.max_sessions > 0
    assert models["mlp"].states == ()
    with pytest.raises(ModelNotFound) as caught:
        client.model("lstm", "99")
    assert caught.value.reason == "VERSION_NOT_FOUND"


def test_live_sessions_are_listed_and_can_be_closed_by_others(client: Client) -> None:
    with client.session("gru") as session:
        session.run(sequence(3))
        (seen,) = [each for each in client.sessions("gru") if each.id == session.id]
        assert (seen.model, seen.state, seen.step_index) == ("gru", "active", 3)
        assert session.id in [each.id for each in client.sessions()]
        assert client.close_session(session.id) == 3
        with pytest.raises(SessionClosed) as caught:
            session.step(sequence(1)[0])
        assert caught.value.code is grpc.StatusCode.ABORTED
        with pytest.raises(SessionNotFound):
            client.close_session(seen.id)


def test_a_closed_session_is_gone_from_the_server(client: Client, eventually: Any) -> None:
    with client.session("gru") as session:
        name = session.id
        session.send(sequence(2))
    assert session.step_index == 2  # closing awaited the reply
    assert eventually(lambda: name not in [each.id for each in client.sessions()])
    with pytest.raises(SessionClosed):
        session.step(sequence(1)[0])


def test_unknown_models_and_versions_are_named(client: Client) -> None:
    for model, version, reason in (("lsmt", "", "MODEL_NOT_FOUND"), ("lstm", "2", "VERSION_NOT_FOUND")):
        with pytest.raises(ModelNotFound, match=version or model) as caught:
            client.session(model, version)
        assert caught.value.reason == reason
        with pytest.raises(ModelNotFound):
            client.predict(model, sequence(2), version=version)


def test_the_servers_own_checks_reach_the_client(client: Client) -> None:
    x = sequence(2)
    x[1, 1] = np.nan
    with client.session("lstm") as session:
        with pytest.raises(InvalidInput) as caught:
            session.run(x)
        assert caught.value.reason == "NON_FINITE_INPUT"
        assert not session.alive
    with pytest.raises(InvalidInput) as caught:
        client.predict("lstm", x)
    assert caught.value.reason == "NON_FINITE_INPUT"


def test_a_malformed_message_ends_the_stream_with_its_reason(served: ServerProcess) -> None:
    from streamcell.client.errors import from_rpc

    with grpc.insecure_channel(served.target) as channel:
        call = channel.stream_stream("/streamcell.v1.StreamCell/Stream")(iter([b"\xff garbage"]))
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    error = from_rpc(caught.value)  # type: ignore[arg-type]
    assert type(error) is InvalidInput
    assert error.reason == "MALFORMED_MESSAGE"


def test_readiness_is_asked_of_the_server_and_of_a_model(client: Client) -> None:
    assert client.ready()
    assert client.ready("lstm")
    with pytest.raises(NotFound):
        client.ready("lsmt")
    with pytest.raises(InvalidInput):
        client.ready("x" * 200)


def test_many_sessions_at_a_time_keep_to_themselves(client: Client, modules: Modules) -> None:
    xs = [sequence(6, seed) for seed in range(20)]
    sessions = [client.session("lstm", lazy=True) for _ in xs]
    for t in range(6):
        for session, x in zip(sessions, xs, strict=True):
            session.send(x[t])
    for session, x in zip(sessions, xs, strict=True):
        outputs = np.stack([session.receive() for _ in range(6)])
        np.testing.assert_allclose(outputs, truth(modules["lstm"], x), **TOLERANCE)
        session.close()


def slowly() -> Iterator[Any]:
    for row in sequence(1000):
        time.sleep(0.05)
        yield row


@pytest.mark.conformance
def test_limits_and_ends_of_a_servers_life_are_typed(
    start_server: Any, models_dir: Path, shared: bool, eventually: Any
) -> None:
    server = start_server(models_dir, "--max-sessions", "2", "--idle-timeout-s", "4", "--grace-s", "0.5")
    with connect(server.target) as client:
        idle = client.session("lstm", multiplex=shared)
        with client.session("lstm", multiplex=shared), pytest.raises(SessionLimit) as caught:
            client.session("lstm", multiplex=shared)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert eventually(lambda: server.metric("streamcell_slots_used", model="lstm") == 0)
        with pytest.raises(SessionExpired) as expired:
            idle.step(sequence(1)[0])
        assert expired.value.metadata["session_id"]
        live = client.session("lstm", multiplex=shared)
        server.ask_to_stop()
        with pytest.raises(ServerDraining):
            list(live.stream(slowly(), window=1))
        assert server.stop() == 0
        with pytest.raises(Unavailable):
            client.session("lstm", multiplex=shared)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    program("openssl")
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.conformance
def test_tls_trusts_the_roots_it_is_given_and_no_others(
    start_server: Any, models_dir: Path, certificate: tuple[Path, Path]
) -> None:
    pem, key = certificate
    server = start_server(models_dir, "--tls-cert", str(pem), "--tls-key", str(key))
    target = server.target.replace("127.0.0.1", "localhost")
    credentials = grpc.ssl_channel_credentials(pem.read_bytes())
    for tls in (pem, str(pem), credentials):
        with connect(target, tls=tls) as client, client.session("lstm") as session:
            assert session.step(sequence(1)[0]).shape == (2,)
    for wrong in (True, False):
        with connect(target, tls=wrong) as client, pytest.raises(Unavailable):
            client.models()
    with pytest.raises(OSError, match="no-such"):
        connect(target, tls="no-such.pem")


def test_closing_a_client_ends_its_sessions(served: ServerProcess, shared: bool) -> None:
    client = connect(served.target)
    session = client.session("lstm", multiplex=shared)
    client.close()
    client.close()
    with pytest.raises(StreamCellError) as caught:
        session.step(sequence(1)[0])
    assert caught.value.code is grpc.StatusCode.CANCELLED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del session
        gc.collect()
