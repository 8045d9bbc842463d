"""The gradient study: its measures on cases with a known answer, and the whole of it at its smallest."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamcell.models import RNNLayer
from streamcell.study import adding, page, through_time
from streamcell.study.depth import Deep
from streamcell.study.settings import FULL, QUICK
from streamcell.study.through_time import Followed


def test_a_linear_cell_passes_its_gradient_back_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(units: int) -> RNNLayer:
        layer = RNNLayer(through_time.INPUTS, units, nonlinearity="relu")
        with torch.no_grad():
            layer.weight_hh.copy_(0.5 * torch.eye(units))
            layer.bias.fill_(100.0)  # every ReLU is on: the cell is linear
        return layer

    monkeypatch.setattr(through_time, "LAYERS", {"halved": halved})
    for one in through_time.follow(QUICK):
        assert one.norms == pytest.approx([0.5**k for k in range(1, one.length)])


def test_the_state_of_an_lstm_is_both_its_tensors() -> None:
    (one,) = [f for f in through_time.follow(QUICK) if f.layer == "LSTM, forget bias 3" and f.length == 10]
    # With the gate almost open, the cell's gradient hardly shrinks, whatever h's does.
    assert one.norms[-1] > 0.1


def test_the_adding_problem_is_what_it_says() -> None:
    torch.manual_seed(0)
    x, y = adding.draw(500, 9)
    numbers, marks = x.unbind(2)
    assert (marks.sum(1) == 2).all()
    assert (marks[:, :4].sum(1) == 1).all()
    torch.testing.assert_close((numbers * marks).sum(1), y)
    assert float((y - 1).square().mean()) == pytest.approx(adding.CHANCE, rel=0.15)


@pytest.mark.slow
def test_a_gru_learns_to_add_in_a_short_sequence() -> None:
    settings = replace(QUICK, adding_units=16, adding_rows=32, adding_updates=600, adding_test=200)
    run = adding.run(adding.Setting("GRU", 6, adding.CLIP, 1), settings)
    assert run.learned
    assert run.first_below is not None
    assert run.first_below <= len(run.losses) <= 600


def test_a_run_that_leaves_the_finite_numbers_ends_and_has_not_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(adding.MODELS, "IRNN", {**adding.MODELS["IRNN"], "hidden_size": 16})
    monkeypatch.setitem(adding.RATES, "IRNN", 10.0)
    run = adding.run(adding.Setting("IRNN", 60, None, 1), replace(QUICK, adding_updates=400))
    assert len(run.losses) < 400
    assert not math.isfinite(run.norms[-1])
    assert not run.learned


def test_the_text_follows_the_figures() -> None:
    layers = [Followed(name, 200, (0.9, last)) for name, last in (("A", 1e-9), ("B", 0.5), ("C", 1e7))]
    runs = [
        adding.Run(adding.Setting(model, 50, clip, 1), (0.2,) * 30, (3.0,), test, 1.0)
        for model, test in (("RNN", 0.2), ("IRNN", 0.2), ("LSTM", 0.001), ("GRU", math.nan))
        for clip in (None, 1.0)
    ]
    deep = [Deep("sigmoid", 4, 1e-5, 0.69, 0.5), Deep("ReLU", 4, 1.0, 0.01, 1.0)]
    text = " ".join(page.page(FULL, layers, runs, deep, "a test").split())
    assert "the gradient shrinks to less than a thousandth in A:" in text
    assert "The gradient grows over a thousandfold in C:" in text
    assert "within a factor of a thousand in B." in text
    assert "most is left in B: 0.5" in text
    assert "The LSTM learns it at T = 50." in text
    assert "The RNN learns it at no length" in text
    assert "LSTM: of 1 runs each, 1 learned it with clipping and 1 without" in text
    assert "| GRU | no | 0/1; not finite |" in text
    assert "Sigmoid parts the spirals at no depth." in text
    assert "ReLU parts the spirals (99 % right or more) at every depth." in text


@pytest.mark.slow
def test_the_whole_study_writes_the_page_and_its_pictures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamcell.study", "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gradients.md").read_text()
    pictures = re.findall(r"\]\((.*\.png)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_committed_page_is_of_the_full_study_and_its_pictures_are_small() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "gradients.md").read_text()
    for model in adding.MODELS:
        assert f"| {model} | yes |" in text
    assert "T = 200" in text
    assert f"{FULL.adding_updates}\nupdates of Adam" in text
    pictures = [docs / name for name in re.findall(r"\]\((.*\.png)\)", text)]
    assert len(pictures) == 3
    assert sum(picture.stat().st_size for picture in pictures) < 300_000
