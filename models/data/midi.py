"""A piano roll as a MIDI file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .piano import LOWEST

_TICKS_A_QUARTER = 480
_VELOCITY = 80


def notes(roll: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Every note of a roll [time, 88] as (first timestep, timesteps, MIDI pitch): a key is held while it stays on."""
    found = []
    on = np.asarray(roll) > 0
    change = np.diff(np.pad(on, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    for key in np.flatnonzero(on.any(axis=0)).tolist():
        begins, ends = np.flatnonzero(change[:, key] == 1), np.flatnonzero(change[:, key] == -1)
        found += [(int(a), int(b - a), key + LOWEST) for a, b in zip(begins, ends, strict=True)]
    return sorted(found)


def write_midi(path: Path, roll: NDArray[Any], *, beats_per_minute: float = 88.0) -> None:
    """Write a roll [time, 88] of quarter notes as one track of one channel."""
    from music21 import midi

    track = midi.MidiTrack(0)
    tempo = midi.MidiEvent(track, type=midi.MetaEvents.SET_TEMPO)
    tempo.data = round(60e6 / beats_per_minute).to_bytes(3, "big")
    timed: list[tuple[int, Any]] = [(0, tempo)]
    strokes = [(begin + length, False, pitch) for begin, length, pitch in notes(roll)]
    strokes += [(begin, True, pitch) for begin, _, pitch in notes(roll)]
    for step, on, pitch in sorted(strokes):  # a key is released before it is struck again
        kind = midi.ChannelVoiceMessages.NOTE_ON if on else midi.ChannelVoiceMessages.NOTE_OFF
        event = midi.MidiEvent(track, type=kind, channel=1)
        event.pitch, event.velocity = pitch, _VELOCITY if on else 0
        timed.append((step * _TICKS_A_QUARTER, event))
    end = midi.MidiEvent(track, type=midi.MetaEvents.END_OF_TRACK)
    end.data = b""
    timed.append((len(roll) * _TICKS_A_QUARTER, end))
    now = 0
    for ticks, event in timed:
        track.events += [midi.DeltaTime(track, time=ticks - now), event]
        now = ticks
    file = midi.MidiFile()
    file.ticksPerQuarterNote = _TICKS_A_QUARTER
    file.tracks.append(track)
    path.write_bytes(file.writestr())
