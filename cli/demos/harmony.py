"""The demo `harmony`: a label for every timestep, which needs what was heard before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report

if TYPE_CHECKING:
    import numpy as np

    from streamcell.cli.demos.shared.sessions import Floats

_SHOWN_STEPS = 96


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM to name the degree of each chord, export it, serve it, stream the held-out chorales.

    An MLP of the same size, which hears one chord at a time, is trained beside it: the difference is memory.
    """
    import numpy as np

    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.sessions import common_rows, stream
    from streamcell.client import AsyncSession
    from streamcell.client.local_server import ServerProcess
    from streamcell.models import score
    from streamcell.models.training import presets

    config = presets.config("harmony", out=folder, data_folder=options.data_folder, **options.training())
    trained = prepare(config, "harmony", retrain=options.retrain, console=options.console)
    deaf = replace(config, out=folder / "without-memory", model=presets.model("harmony", "mlp"))
    without = prepare(deaf, "harmony-mlp", retrain=options.retrain, console=options.console)
    pieces = [series.x for series in trained.test]
    truth = [series.y.argmax(1) for series in trained.test]

    async def through(session: AsyncSession, piece: Floats) -> Floats:
        return np.stack([await session.step(chord) for chord in piece])

    options.console.print(f"streaming {len(pieces)} chorales through {options.sessions} sessions …")
    with ServerProcess(trained.models) as server:
        logits, figures = stream(server, "harmony", pieces, options.sessions, through)
    said = [piece.argmax(1) for piece in logits]
    torch_score, deaf_score = (score(each.module, each.data, "test") for each in (trained, without))
    figures |= {
        "loss_torch": torch_score.loss,
        "accuracy_torch": torch_score.accuracy,
        "accuracy_served": float((np.concatenate(said) == np.concatenate(truth)).mean()),
        "accuracy_without_memory": deaf_score.accuracy,
    }
    picture = folder / "degrees.png"
    longest = max(range(len(pieces)), key=lambda index: len(pieces[index]))
    _draw(picture, truth[longest], said[longest], trained.data.about["classes"])
    rows = [
        ("test accuracy in PyTorch", f"{figures['accuracy_torch']:.2%}"),
        ("accuracy served, one chord per message", f"{figures['accuracy_served']:.2%}"),
        ("accuracy of an MLP, which has no memory", f"{figures['accuracy_without_memory']:.2%}"),
        *common_rows(figures),
    ]
    files = {"loss curve": trained.loss_plot, "degrees": picture, "exported model": trained.path}
    return Report("The chorales' harmony, served", rows, figures, files).save(folder)


def _draw(path: Path, truth: np.ndarray, said: np.ndarray, names: list[str]) -> None:
    """The degree at each quarter note, in the score and as the served model labels it."""
    from matplotlib.figure import Figure

    truth, said = truth[:_SHOWN_STEPS], said[:_SHOWN_STEPS]
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.step(range(len(truth)), truth, where="mid", color="0.6", linewidth=3, label="score")
    right = truth == said
    for which, colour, label in ((right, "C0", "model, correct"), (~right, "C3", "model, wrong")):
        axes.plot(which.nonzero()[0], said[which], ".", color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="quarter notes", ylabel="degree of the key")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    figure.savefig(path, dpi=120)


DEMO = Demo(
    "harmony",
    "many-to-many, aligned",
    "Bach's chorales: an LSTM labels each quarter note with the degree of the key that its chord stands on",
    run,
)
