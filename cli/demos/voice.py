"""The demo `voice`: sound goes in, block by block, and after each comes whether somebody speaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Demo, Options, Report

if TYPE_CHECKING:
    import numpy as np

    from streamcell.cli.demos.shared.sessions import Floats
    from streamcell.models.training.speech_evaluation import Frames

# A test clip each way: as a page in a browser sends it, 50 ms a message.
_MESSAGE_STEPS = 5


def run(folder: Path, options: Options) -> Report:
    """Train a GRU to hear speech in noise, export it, serve it, stream unseen voices in unseen noises."""
    import numpy as np

    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.sessions import common_rows, stream
    from streamcell.client import AsyncSession
    from streamcell.client.local_server import ServerProcess
    from streamcell.models.training import presets
    from streamcell.models.training.speech_evaluation import count_frames, loudness_errors

    config = presets.config("voice", out=folder, data_folder=options.data_folder, **options.training())
    trained = prepare(config, "voice", retrain=options.retrain, console=options.console)
    clips = [series.x for series in trained.test]

    async def through(session: AsyncSession, clip: Floats) -> Floats:
        messages = np.split(clip, range(_MESSAGE_STEPS, len(clip), _MESSAGE_STEPS))
        return np.concatenate([await session.run(message) for message in messages])

    options.console.print(f"streaming {len(clips)} clips through {options.sessions} sessions …")
    with ServerProcess(trained.models) as server:
        served, figures = stream(server, "voice", clips, options.sessions, through)
    torch = trained.outputs()
    truth = [series.y > 0.5 for series in trained.test]
    frames = count_frames((y > 0, true) for y, true in zip(served, truth, strict=True))
    in_torch = count_frames((y > 0, true) for y, true in zip(torch, truth, strict=True))
    loudness = loudness_errors(trained.data, "test")
    figures |= {
        "loss_torch": trained.loss,
        "frame_error_torch": in_torch.error,
        "frame_error_served": frames.error,
        "f1_served": frames.f1,
        "missed": frames.missed / frames.speech,
        "false": frames.false / frames.silence,
        "frame_error_of_loudness": loudness.error,
        "largest_difference": max(
            float(np.abs(one - other).max()) for one, other in zip(served, torch, strict=True)
        ),
    }
    picture = folder / "clip.png"
    _draw(picture, clips[-1], truth[-1], served[-1])
    files = {"loss curve": trained.loss_plot, "a clip": picture, "exported model": trained.path}
    return Report(
        "Speech in noise, served", _rows(figures, frames) + common_rows(figures), figures, files
    ).save(folder)


def _rows(figures: dict[str, Any], frames: Frames) -> list[tuple[str, str]]:
    return [
        ("wrong blocks of 10 ms in PyTorch", f"{figures['frame_error_torch']:.2%}"),
        ("wrong blocks, served", f"{frames.error:.2%}"),
        ("F1 of speech, served", f"{frames.f1:.2%}"),
        ("speech missed, silence taken for speech", "{missed:.2%}, {false:.2%}".format(**figures)),
        ("wrong blocks of the best loudness threshold", "{frame_error_of_loudness:.2%}".format(**figures)),
        ("largest difference to PyTorch", "{largest_difference:.1e}".format(**figures)),
    ]


def _draw(path: Path, clip: Floats, truth: np.ndarray[Any, Any], y: Floats) -> None:
    """The loudness of a clip, where speech is, and where the served model hears it."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    time_s = np.arange(len(clip)) / 100
    above.plot(time_s, 10 * np.log10(np.square(clip).mean(axis=1) + 1e-8), color="0.3")
    above.set(ylabel="loudness, dB", title="speech in noise; green: somebody speaks")
    below.plot(time_s, y[:, 0])
    below.axhline(0, color="0.6")
    below.set(xlabel="seconds", ylabel="log-odds of speech, served")
    for axes in (above, below):
        axes.fill_between(
            time_s, 0, 1, where=truth[:, 0], transform=axes.get_xaxis_transform(), color="C2", alpha=0.2
        )
    figure.savefig(path, dpi=120)


DEMO = Demo(
    "voice",
    "many-to-many, aligned",
    "speech in noise: a GRU hears blocks of 10 ms and says after each whether somebody speaks",
    run,
)
