"""Letters to phonemes, served: what the server generates is what PyTorch says, by arg-max and by beam search."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import streamcell.models as models_face
from streamcell.cli import app
from streamcell.cli.demos import g2p as demo_g2p
from streamcell.client import AsyncClient, Client, StreamCellError, connect_async
from streamcell.client.local_server import ServerProcess
from streamcell.models import Seq2Seq, load_run
from streamcell.models.architectures.seq2seq_decode import beam
from streamcell.models.data import registry
from streamcell.models.data.g2p import Dictionary, Symbols
from streamcell.models.training.g2p_evaluation import LIMIT, pronounce


@pytest.mark.parametrize(("name", "fixture"), [("g2p", "trained"), ("aligned", "aligned")])
def test_the_server_says_of_words_what_pytorch_says(
    name: str, fixture: str, few: Dictionary, client: Client, request: pytest.FixtureRequest
) -> None:
    model, document = load_run(request.getfixturevalue(fixture))
    assert isinstance(model, Seq2Seq)
    symbols = Symbols.of(document["data"])
    words = list(few.words)[:40:2]
    rng = np.random.default_rng(3)
    greedy_answers = pronounce(model, symbols, words)
    assert len(set(greedy_answers)) > 10
    for word, expected in zip(words, greedy_answers, strict=True):
        letters = symbols.spell(word)
        with client.session(name) as session:
            cut = int(rng.integers(len(letters) + 1))
            for piece in (letters[:cut], letters[cut:]):
                if piece:
                    session.run(np.array(piece, np.int64), output="none")
            found = session.beam_search(LIMIT, width=4, results=3)
            wanted = beam(model, letters, width=4, limit=LIMIT, results=3)
            assert [symbols.pronunciation(each.classes) for each in found] == [
                symbols.pronunciation(each.classes) for each in wanted
            ]
            np.testing.assert_allclose([f.score for f in found], [w.score for w in wanted], atol=1e-4)
            np.testing.assert_allclose(
                [f.log_probability for f in found], [w.log_probability for w in wanted], atol=1e-4
            )
            # The search has left the state after the letters as it was.
            generated = session.generate(LIMIT).all()
            assert generated.stop_reason == "class"
            assert symbols.pronunciation(generated.chosen) == expected
            assert generated.fed[0] == symbols.go


def test_a_message_of_any_mix_is_answered_as_pytorch_answers_it(trained: Path, client: Client) -> None:
    model, _ = load_run(trained)
    rng = np.random.default_rng(4)
    for length in (1, 3, 17):
        x = rng.integers(0, model.input_size, length)
        with torch.no_grad():
            y, *_ = model(torch.from_numpy(x)[None])
        with client.session("g2p") as session:
            np.testing.assert_allclose(session.run(x), y[0].numpy(), atol=1e-5)


def test_sessions_at_letters_and_at_phonemes_share_runs_and_never_see_each_other(
    trained: Path, exported: Path, start_server: Callable[..., ServerProcess]
) -> None:
    model, _ = load_run(trained)
    server = start_server(exported)
    rng = np.random.default_rng(6)
    sequences = [rng.integers(0, model.input_size, rng.integers(5, 30)) for _ in range(24)]

    async def one(client: AsyncClient, x: np.ndarray, seed: int) -> np.ndarray:
        cuts = np.random.default_rng(seed)
        outputs = []
        async with client.session("g2p") as session:
            while len(x):
                size = int(cuts.integers(1, 5))
                outputs.append(await session.run(x[:size]))
                x = x[size:]
        return np.concatenate(outputs)

    async def every() -> list[np.ndarray]:
        async with connect_async(server.target) as client:
            return await asyncio.gather(*(one(client, x, seed) for seed, x in enumerate(sequences)))

    for x, given in zip(sequences, asyncio.run(every()), strict=True):
        with torch.no_grad():
            y, *_ = model(torch.from_numpy(x)[None])
        np.testing.assert_allclose(given, y[0].numpy(), atol=1e-5)
    rows, runs = (server.metric(f"streamcell_batch_rows_{what}") for what in ("sum", "count"))
    assert rows / runs > 1.5


@pytest.mark.parametrize("token", [-1, 69])
def test_a_token_outside_the_table_is_refused_alone(token: int, client: Client) -> None:
    with client.session("g2p") as good, client.session("g2p") as bad:
        before = good.run(np.array([3, 1], np.int64))
        with pytest.raises(StreamCellError) as refused:
            bad.run(np.array([3, token], np.int64))
        assert refused.value.reason == "INDEX_OUT_OF_RANGE"
        with client.session("g2p") as again:
            np.testing.assert_allclose(again.run(np.array([3, 1], np.int64)), before, atol=1e-6)
        assert good.step_index == 2
        good.run(np.array([4], np.int64))
        assert good.step_index == 3


@pytest.mark.slow
def test_the_demo_goes_from_the_dictionary_to_served_error_rates(
    few: Dictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load_dictionary", lambda stress: few)
    monkeypatch.setattr(models_face, "load_dictionary", lambda stress: few)
    monkeypatch.setattr(demo_g2p, "_EPOCHS", 2)  # by the clock it would be another model each time
    arguments = ["demo", "g2p", "--out", str(tmp_path), "--sessions", "8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "streamcell" in done.output
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["words"] == len(few.part("test"))
    assert figures["answers_unlike_torch"] == 0
    assert figures["arg_max_served"] == figures["arg_max_torch"]
    assert 0 < figures["beam_served"]["phoneme_error_rate"] <= 1.5
    assert figures["mean_batch"] > 1
