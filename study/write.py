"""The whole study: two processes measure, then the pictures and the page are written."""

from __future__ import annotations

import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import adding, depth, page, plots, through_time
from .settings import Settings

PROCESSES = 2


def write(out: Path, settings: Settings) -> None:
    """Measure with `settings`; write `out`/gradients.md and `out`/gradients/*.png."""
    began_s = time.monotonic()
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        PROCESSES, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        deep_job = pool.submit(depth.deepen, settings)
        followed_job = pool.submit(through_time.follow, settings)
        jobs = [pool.submit(adding.run, setting, settings) for setting in adding.settings_of(settings)]
        runs = []
        for job in jobs:
            runs.append(job.result())
            done = runs[-1]
            print(f"{done.setting}: test error {done.test:.4g}, {done.elapsed_s:.0f} s", flush=True)
        followed, deep = followed_job.result(), deep_job.result()
    pictures = out / "gradients"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / page.TIME_PNG).write_bytes(plots.time_plot(followed))
    (pictures / page.ADDING_PNG).write_bytes(plots.adding_plot(runs))
    (pictures / page.DEPTH_PNG).write_bytes(plots.depth_plot(deep))
    made = f"PyTorch {torch.__version__} on the CPU ({platform.machine()}), one thread a run"
    (out / "gradients.md").write_text(page.page(settings, followed, runs, deep, made))
    print(f"wrote {out / 'gradients.md'} in {time.monotonic() - began_s:.0f} s")
