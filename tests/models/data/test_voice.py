"""Speech in noise: clips that are the same each time, and marks where somebody speaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from streamcell.models.data import noises, speech, voice
from streamcell.models.errors import DataError

PART = voice.Part(10, 5, ("de", "fi"), ("m1", "f2"), {**noises.KNOWN, **noises.VALIDATION, **noises.UNSEEN})


def test_clips_are_the_same_each_time(program: Callable[[str], str]) -> None:
    program("espeak-ng")
    first, second = voice.clips(PART), voice.clips(PART)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.series.x, other.series.x)
        np.testing.assert_array_equal(one.series.y, other.series.y)
        assert one.noise == other.noise
    silent = [clip for clip in first if clip.snr_db is None]
    assert len(silent) == 1
    assert not silent[0].series.y.any()
    for clip in first:
        assert clip.series.x.shape == (400, 160)
        assert np.abs(clip.series.x).max() <= 1.01
        assert clip.snr_db is None or 0.1 < clip.series.y.mean() < 0.95


def test_no_voice_and_no_noise_of_the_test_part_is_in_another() -> None:
    train, valid, test = (voice.PARTS[name] for name in ("train", "valid", "test"))
    for other in (train, valid):
        assert not {*test.languages} & {*other.languages}
        assert not {*test.variants} & {*other.variants}
        assert not test.kinds.keys() & other.kinds.keys()
    assert not {*train.variants} & {*valid.variants}


def test_quiet_is_silence_and_a_short_gap_is_speech() -> None:
    dry = np.zeros(voice.BLOCK * 40)
    tone = np.sin(np.arange(voice.BLOCK * 5))
    for first in (3, 14, 30):  # gaps of 6 and 11 blocks
        dry[first * voice.BLOCK : (first + 5) * voice.BLOCK] = tone
    dry += 1e-4 * np.cos(np.arange(len(dry)))
    assert np.flatnonzero(voice.spoken(dry)).tolist() == [*range(3, 19), *range(30, 35)]


@pytest.mark.parametrize("kind", [*noises.KNOWN, *noises.VALIDATION, *noises.UNSEEN])
def test_noise_is_sound_and_follows_from_its_seed(kind: str) -> None:
    make = {**noises.KNOWN, **noises.VALIDATION, **noises.UNSEEN}[kind]
    first, second = (make(np.random.default_rng(3), 16_001, 16_000) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (16_001,)
    assert np.isfinite(first).all()
    assert first.std() > 0


def test_a_tone_keeps_its_pitch_at_another_rate() -> None:
    for rate in (22_050, 8_000, 48_000):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        found = speech.resampled(tone, rate)
        assert len(found) == speech.RATE
        wanted = np.sin(2 * np.pi * 440 * np.arange(speech.RATE) / speech.RATE)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="apt-get install espeak-ng"):
        voice.load_voice()


def test_an_unknown_voice_is_an_error(program: Callable[[str], str]) -> None:
    program("espeak-ng")
    with pytest.raises(DataError, match=r"could not speak as qqq\+m1"):
        speech.speak("a", speech.Voice("qqq", "m1", 50, 160))
