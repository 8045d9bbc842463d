"""Speech that the program espeak-ng speaks: made-up words in many languages and voices."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .sequences import Floats

PROGRAM = "espeak-ng"
RATE = 16_000
_HEADER_BYTES = 44

_ONSETS = (
    "",
    *"bdfghjklmnprstvwz",
    "br",
    "dr",
    "fl",
    "gl",
    "kr",
    "pl",
    "sk",
    "sh",
    "sp",
    "st",
    "str",
    "tr",
    "ch",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "au", "ee", "oo", "io")
_CODAS = ("", "", "", "n", "r", "s", "t", "l", "m", "k", "st", "nd")


@dataclass(frozen=True)
class Voice:
    """How espeak-ng speaks.

    Attributes:
        language: of its `--voices`.
        variant: of its folder `voices/!v`: the speaker.
        pitch: 0 to 99.
        speed: words a minute.
    """

    language: str
    variant: str
    pitch: int
    speed: int


def words(rng: np.random.Generator, count: int) -> str:
    """Made-up words of one to three syllables, which espeak-ng reads by the rules of any language."""
    return " ".join(
        "".join(
            str(rng.choice(part)) for _ in range(rng.integers(1, 4)) for part in (_ONSETS, _VOWELS, _CODAS)
        )
        for _ in range(count)
    )


def speak(text: str, voice: Voice) -> Floats:
    """float32[samples] at 16 kHz, the largest near 1, without the silence before and after.

    Raises:
        DataError: espeak-ng is not installed, or does not know the voice.
    """
    name = f"{voice.language}+{voice.variant}"
    command = [_program(), "-v", name, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdout", "--", text]
    done = subprocess.run(command, capture_output=True, check=False)
    samples = np.frombuffer(done.stdout[_HEADER_BYTES:], "<i2").astype(np.float64)
    if done.returncode or not samples.any():
        said = done.stderr.decode(errors="replace").strip()
        raise DataError(f"{PROGRAM} could not speak as {name}: {said}")
    sounding = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    rate = int.from_bytes(done.stdout[24:28], "little")
    samples = resampled(samples[sounding[0] : sounding[-1] + 1], rate)
    loudest: Floats = (samples / np.abs(samples).max()).astype(np.float32)
    return loudest


def version() -> str:
    """The program's name and version, for provenance.

    Raises:
        DataError: it is not installed.
    """
    said = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=False).stdout
    return f"{PROGRAM} {said.partition(':')[2].split()[0] if ':' in said else 'of an unknown version'}"


def resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Samples at `rate` Hz → at 16 kHz, band-limited: by its Fourier transform, cut or extended."""
    count = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)
    kept = np.zeros(count // 2 + 1, np.complex128)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return np.fft.irfft(kept, count) * (count / len(samples))


def _program() -> str:
    found = shutil.which(PROGRAM)
    if found is None:
        raise DataError(
            f"the voices need the program {PROGRAM}: apt-get install espeak-ng, or brew install espeak-ng"
        )
    return found
