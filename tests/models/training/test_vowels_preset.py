"""The default of docs/vowels.md and its convolution, each with one seed of its ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.models import train
from streamcell.models.training import presets


@pytest.mark.slow
def test_a_gru_on_stretched_and_noisy_utterances_tells_the_speakers_apart(tmp_path: Path) -> None:
    accuracy = train(presets.config("vowels", out=tmp_path / "run", seed=2)).test_accuracy
    assert accuracy is not None
    assert accuracy > 0.97  # this seed: 98.6 %; ten seeds: 97.3 to 98.6 %


@pytest.mark.slow
def test_a_convolution_over_the_whole_utterance_tells_the_speakers_apart(tmp_path: Path) -> None:
    tcn = presets.model("vowels", "tcn", layers=3)
    config = presets.config("vowels", model=tcn, out=tmp_path / "run", stretch=0.0, noise=0.0)
    accuracy = train(config).test_accuracy
    assert accuracy is not None
    assert accuracy > 0.97  # ten seeds: 97.6 to 98.6 %
