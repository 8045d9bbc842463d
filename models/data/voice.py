"""The data set `voice`: whether somebody speaks, every 10 ms, in noise.

A clip is four seconds of sound at 16 kHz, cut into blocks of 160 samples. espeak-ng speaks (`speech.py`), `noises.py`
makes the noise. The test part has languages, speakers and noises that the other parts lack.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import noises
from .noises import Noise, Samples
from .sequences import Floats, SequenceData, Series
from .speech import RATE, Voice, speak, version, words

BLOCK = 160
CLIP = 4 * RATE
# A block counts as speech if its energy, without noise, is at most this far below the loudest block's, in dB …
RANGE_DB = 40.0
# … and so do up to this many blocks between two such ones: the closure of a plosive is no silence.
CLOSURE = 6
# Clips without speech.
SILENT = 0.1


@dataclass(frozen=True)
class Part:
    """Where a part's sounds come from.

    Attributes:
        clips: how many.
        seed: of its random numbers.
        languages, variants: of the voices.
        kinds: of noise.
    """

    clips: int
    seed: int
    languages: Sequence[str]
    variants: Sequence[str]
    kinds: Mapping[str, Noise]


_LANGUAGES = ("en-us", "de", "fr-fr", "es", "it", "pl", "sv", "tr", "fi", "hu", "pt-br", "ro", "id", "sw")
_VARIANTS = (
    "m1",
    "m2",
    "m3",
    "m5",
    "m6",
    "m7",
    "f1",
    "f2",
    "f3",
    "adam",
    "anika",
    "linda",
    "michael",
    "klatt2",
)
PARTS = {
    "train": Part(480, 1, _LANGUAGES, _VARIANTS, noises.KNOWN),
    "valid": Part(66, 2, _LANGUAGES, ("m8", "f5"), {**noises.KNOWN, **noises.VALIDATION}),
    "test": Part(
        120, 3, ("en-gb-scotland", "nl", "cs", "vi", "el"), ("m4", "f4", "belinda", "klatt4"), noises.UNSEEN
    ),
}


def load_voice(parts: Mapping[str, Part] | None = None) -> SequenceData:
    """Let espeak-ng speak all clips of `parts` (`PARTS`), which takes a few seconds.

    Raises:
        DataError: espeak-ng is not installed.
    """
    made = {name: clips(part) for name, part in (PARTS if parts is None else parts).items()}
    return SequenceData(
        "voice",
        train=[clip.series for clip in made["train"]],
        valid=[clip.series for clip in made["valid"]],
        test=[clip.series for clip in made["test"]],
        distribution="bernoulli_logits",
        sample_rate=RATE,
        measure="speech_errors",
        about={"source": version(), "outputs": ["log-odds of speech"]},
    )


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        series: x float32[400, 160], y float32[400, 1].
        noise: its kind.
        snr_db: energy of the speech above the noise's, over the blocks with speech; None if there is no speech.
    """

    series: Series
    noise: str
    snr_db: float | None


def clips(part: Part) -> list[Clip]:
    """A part's clips, the same each time.

    Raises:
        DataError: espeak-ng is not installed.
    """
    rng = np.random.default_rng(part.seed)
    return [_clip(part, rng, silent=number < SILENT * part.clips) for number in range(part.clips)]


def _clip(part: Part, rng: np.random.Generator, *, silent: bool) -> Clip:
    kind = str(rng.choice(list(part.kinds)))
    noise = part.kinds[kind](rng, CLIP, RATE)
    noise /= np.sqrt(np.square(noise).mean())
    gain = 10 ** rng.uniform(-1.5, 0)
    floor = 10 ** (-70 / 20) * rng.standard_normal(CLIP)
    if silent:
        x = noise * gain * 0.1
        return Clip(Series(_blocks(x + floor), np.zeros((CLIP // BLOCK, 1), np.float32)), kind, None)
    dry = _speech(part, rng)
    asked = spoken(dry)
    snr_db = float(rng.uniform(0, 30))
    heard = _heard(dry, rng)
    loud = np.square(_blocks(heard)).mean(axis=1)[asked].mean()
    x = heard + noise * np.sqrt(loud) * 10 ** (-snr_db / 20)
    x = x * (gain / np.abs(x).max()) + floor
    return Clip(Series(_blocks(x), asked[:, None].astype(np.float32)), kind, snr_db)


def _speech(part: Part, rng: np.random.Generator) -> Samples:
    """Phrases of one voice, with pauses between them."""
    voice = Voice(
        str(rng.choice(list(part.languages))),
        str(rng.choice(list(part.variants))),
        int(rng.integers(20, 80)),
        int(rng.integers(120, 220)),
    )
    y = np.zeros(CLIP)
    at = int(rng.uniform(0.1, 1.0) * RATE)
    while at < CLIP - RATE // 4:
        phrase = speak(words(rng, int(rng.integers(1, 4))), voice)[: CLIP - at]
        y[at : at + len(phrase)] += phrase
        at += len(phrase) + int(rng.uniform(0.2, 1.2) * RATE)
    return y


def _heard(dry: Samples, rng: np.random.Generator) -> Samples:
    """In a room and by a microphone: an echo that dies away, treble or bass raised."""
    size = int(rng.uniform(0.03, 0.25) * RATE)
    tail = rng.standard_normal(size) * np.exp(-5 * np.arange(size) / size)
    tail *= rng.uniform(0, 0.5) / np.sqrt(np.square(tail).sum())
    tail[0] += 1
    length = len(dry) + size
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    tilt = (np.maximum(hertz, 100) / 1000) ** rng.uniform(-0.4, 0.4)
    wet = np.fft.irfft(np.fft.rfft(dry, length) * np.fft.rfft(tail, length) * tilt, length)
    return wet[: len(dry)]


def spoken(dry: Samples) -> NDArray[np.bool_]:
    """Which blocks of samples have speech, bool[blocks]: those within `RANGE_DB` of the loudest, and short gaps."""
    energy = np.square(_blocks(dry)).mean(axis=1)
    found: NDArray[np.bool_] = energy > energy.max() * 10 ** (-RANGE_DB / 10)
    places = np.flatnonzero(found)
    for first, second in itertools.pairwise(places):
        if second - first - 1 <= CLOSURE:
            found[first:second] = True
    return found


def _blocks(samples: Samples) -> Floats:
    return samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(np.float32)
