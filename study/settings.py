"""How large the study is. Every figure follows from these and from the seeds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the three experiments.

    Attributes:
        time_units, time_lengths, time_rows, time_seeds: recurrent layers through which gradients are followed;
            numbers of timesteps; sequences and initialisations that are averaged.
        adding_units, adding_lengths, adding_rows, adding_updates, adding_test, adding_seeds: the adding problem;
            sequences of an update, most updates of a run, sequences of the test, runs of each setting.
        depth_units, depth_depths, depth_points, depth_updates, depth_seeds: perceptrons over depth.
    """

    time_units: int = 64
    time_lengths: tuple[int, ...] = (25, 50, 100, 200)
    time_rows: int = 32
    time_seeds: tuple[int, ...] = (1, 2, 3)
    adding_units: int = 48
    adding_lengths: tuple[int, ...] = (50, 100, 200)
    adding_rows: int = 32
    adding_updates: int = 2000
    adding_test: int = 1000
    adding_seeds: tuple[int, ...] = (1, 2)
    depth_units: int = 32
    depth_depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    depth_points: int = 512
    depth_updates: int = 400
    depth_seeds: tuple[int, ...] = (1, 2, 3)


FULL = Settings()
# Every path of the study in a few seconds; its figures mean nothing.
QUICK = Settings(
    time_units=8,
    time_lengths=(5, 10),
    time_rows=4,
    time_seeds=(1,),
    adding_units=4,
    adding_lengths=(5, 8),
    adding_rows=4,
    adding_updates=6,
    adding_test=8,
    depth_units=8,
    depth_depths=(1, 3),
    depth_points=16,
    depth_updates=4,
    depth_seeds=(1,),
)
