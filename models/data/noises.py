"""Kinds of noise, each made by arithmetic from a random generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int], Samples]


def _coloured(power: float) -> Noise:
    """Noise whose spectrum falls with this power of the frequency, from 20 Hz on."""

    def make(rng: np.random.Generator, count: int, rate: int) -> Samples:
        spectrum = np.fft.rfft(rng.standard_normal(count))
        hertz = np.fft.rfftfreq(count, 1 / rate)
        return np.fft.irfft(spectrum * np.maximum(hertz, 20.0) ** (-power / 2), count)

    return make


def _hum(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Mains: 50 or 60 Hz and overtones."""
    time_s = np.arange(count) / rate
    base = rng.choice([50.0, 60.0])
    return _sum(
        rng.random() / number * np.sin(2 * np.pi * number * base * time_s + rng.uniform(0, 2 * np.pi))
        for number in range(1, 12)
    ) + 0.02 * rng.standard_normal(count)


def _band(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Noise of one band, as of a fan."""
    low = rng.uniform(80, rate / 4)
    hertz = np.fft.rfftfreq(count, 1 / rate)
    inside = np.exp(-0.5 * ((hertz - low) / rng.uniform(50, 1500)) ** 2) + 0.003
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * inside, count)


def _knocks(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Short knocks and clicks, as of a keyboard, that ring and die away."""
    y = 0.003 * rng.standard_normal(count)
    for _ in range(rng.poisson(4.0 * count / rate) + 1):
        at = int(rng.integers(count))
        time_s = np.arange(min(count - at, rate // 8)) / rate
        ring = np.sin(2 * np.pi * rng.uniform(150, 4000) * time_s) + 0.5 * rng.standard_normal(len(time_s))
        y[at : at + len(time_s)] += rng.uniform(0.2, 1) * ring * np.exp(-time_s / rng.uniform(0.002, 0.03))
    return y


def _notes(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Notes of a few overtones, one after the other, as of an organ."""
    y = 0.003 * rng.standard_normal(count)
    at = 0
    while at < count:
        size = min(int(rng.uniform(0.1, 0.8) * rate), count - at)
        time_s = np.arange(size) / rate
        pitch = 440 * 2 ** (rng.integers(-24, 13) / 12)
        tone = _sum(np.sin(2 * np.pi * n * pitch * time_s) / n ** rng.uniform(1, 2) for n in range(1, 5))
        y[at : at + size] += tone * np.minimum(1, 40 * time_s) * np.exp(-time_s * rng.uniform(0, 6))
        at += size
    return y


def _shaped(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Noise of a random spectrum that flutters at a random pace."""
    hertz = np.fft.rfftfreq(count, 1 / rate)
    level_db = np.interp(hertz, np.linspace(0, rate / 2, 9), rng.uniform(-30, 0, 9))
    y = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * 10 ** (level_db / 20), count)
    knots = rng.uniform(rng.uniform(0, 1), 1, int(rng.uniform(2, 60) * count / rate) + 2)
    return y * np.interp(np.arange(count), np.linspace(0, count, len(knots)), knots)


def _crackle(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Few or many tiny impulses, each of which rings for a moment."""
    drops = rng.standard_normal(count) * (rng.random(count) < 10 ** rng.uniform(-3.5, -1))
    size = int(rng.uniform(0.001, 0.02) * rate) + 2
    ring = np.exp(-4 * np.arange(size) / size) * np.cos(np.arange(size) * rng.uniform(0, 2.5))
    return np.convolve(drops, ring, "same") + 0.003 * rng.standard_normal(count)


def _sweeps(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """A whistle that glides from pitch to pitch."""
    knots = rng.uniform(200, 4000, int(rng.uniform(0.5, 5) * count / rate) + 2)
    hertz = np.interp(np.arange(count), np.linspace(0, count, len(knots)), knots)
    return np.sin(2 * np.pi * np.cumsum(hertz) / rate) + 0.01 * rng.standard_normal(count)


def _engine(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Pulses at an uneven pace through a dull resonance."""
    pace = rng.uniform(15, 60) * (1 + 0.1 * np.cumsum(rng.standard_normal(count)) / np.sqrt(count))
    pulses = np.diff(np.floor(np.cumsum(pace) / rate), prepend=0.0) * rng.uniform(0.7, 1, count)
    time_s = np.arange(rate // 20) / rate
    ring = np.exp(-80 * time_s) * np.sin(2 * np.pi * rng.uniform(80, 300) * time_s)
    return np.convolve(pulses, ring)[:count] + 0.01 * rng.standard_normal(count)


def _applause(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Many hands that clap."""
    claps = np.zeros(count)
    places = rng.integers(0, count, rng.poisson(40.0 * count / rate) + 1)
    np.add.at(claps, places, rng.exponential(1.0, len(places)))
    time_s = np.arange(rate // 30) / rate
    clap = rng.standard_normal(len(time_s)) * np.exp(-150 * time_s)
    return np.convolve(claps, clap)[:count] + 0.01 * rng.standard_normal(count)


def _wind(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Low noise that swells and fades."""
    low = _coloured(2.5)(rng, count, rate)
    knots = rng.uniform(0.05, 1.0, count // (rate // 2) + 2)
    return low * np.interp(np.arange(count), np.linspace(0, count, len(knots)), knots)


def _siren(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """A tone with overtones that goes up and down."""
    time_s = np.arange(count) / rate
    pitch = rng.uniform(400, 900) * 2 ** (0.5 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time_s))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return (
        np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase) + 0.01 * rng.standard_normal(count)
    )


def _rain(rng: np.random.Generator, count: int, rate: int) -> Samples:
    """Many tiny drops over a hiss."""
    drops = rng.standard_normal(count) * (rng.random(count) < 0.01) * rng.exponential(1.0, count)
    return np.convolve(drops, np.exp(-np.arange(rate // 100) / 40.0), "same") + 0.1 * rng.standard_normal(
        count
    )


def _sum(parts: Any) -> Samples:
    total: Samples = np.sum(list(parts), axis=0)
    return total


# For training; validation adds those of the second, and the test has its own.
KNOWN: Mapping[str, Noise] = {
    "white": _coloured(0.0),
    "pink": _coloured(1.0),
    "brown": _coloured(2.0),
    "hum": _hum,
    "fan": _band,
    "knocks": _knocks,
    "notes": _notes,
    "shaped": _shaped,
    "crackle": _crackle,
    "sweeps": _sweeps,
}
VALIDATION: Mapping[str, Noise] = {"rain": _rain}
UNSEEN: Mapping[str, Noise] = {"wind": _wind, "siren": _siren, "engine": _engine, "applause": _applause}
