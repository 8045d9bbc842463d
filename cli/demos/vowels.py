"""The demo `vowels`: a sequence goes in frame by frame, one answer comes back at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report

if TYPE_CHECKING:
    import numpy as np

    from streamcell.cli.demos.shared.sessions import Floats


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM to classify nine speakers, export it, serve it, stream 370 unseen utterances."""
    import numpy as np

    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.sessions import common_rows, stream
    from streamcell.client import AsyncSession
    from streamcell.client.local_server import ServerProcess
    from streamcell.models import score
    from streamcell.models.training import presets

    config = presets.config("vowels", out=folder, data_folder=options.data_folder, **options.training())
    trained = prepare(config, "vowels", retrain=options.retrain, console=options.console)
    utterances = [series.x for series in trained.test]
    truth = np.stack([series.y[-1] for series in trained.test]).argmax(1)

    async def by_frame(session: AsyncSession, utterance: Floats) -> Floats:
        for frame in utterance[:-1]:
            await session.step(frame, output="none")
        answer: Floats = await session.step(utterance[-1], output="last")
        return answer

    async def at_once(session: AsyncSession, utterance: Floats) -> Floats:
        (answer,) = await session.run(utterance, output="last")
        heard: Floats = answer
        return heard

    options.console.print(f"streaming {len(utterances)} utterances through {options.sessions} sessions …")
    with ServerProcess(trained.models) as server:
        framewise, figures = stream(server, "vowels", utterances, options.sessions, by_frame)
        whole, _ = stream(server, "vowels", utterances, options.sessions, at_once)
    logits = np.stack(framewise)
    torch_score = score(trained.module, trained.data, "test")
    figures |= {
        "loss_torch": torch_score.loss,
        "accuracy_torch": torch_score.accuracy,
        "accuracy_served": float((logits.argmax(1) == truth).mean()),
        "answers": len(logits),
        "largest_difference": float(np.abs(np.stack(whole) - logits).max()),
    }
    picture = folder / "confusion.png"
    _draw(picture, truth, logits.argmax(1), trained.data.about["classes"])
    rows = [
        ("test accuracy in PyTorch", f"{figures['accuracy_torch']:.2%}"),
        ("accuracy served, one frame per message", f"{figures['accuracy_served']:.2%}"),
        ("answers received", f"{figures['answers']}, one per utterance"),
        ("largest difference if sent as one message", f"{figures['largest_difference']:.1e}"),
        *common_rows(figures),
    ]
    files = {"loss curve": trained.loss_plot, "confusion": picture, "exported model": trained.path}
    return Report("Japanese vowels, served", rows, figures, files).save(folder)


def _draw(path: Path, truth: np.ndarray, said: np.ndarray, names: list[str]) -> None:
    """The confusion matrix: utterances by true and predicted speaker."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, said), 1)
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", norm="log", vmin=0.5)
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 4
        axes.text(column, row, counts[row, column], ha="center", va="center", color="w" if dark else "k")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=60)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted speaker", ylabel="true speaker")
    figure.savefig(path, dpi=120)


DEMO = Demo(
    "vowels",
    "many-to-one",
    "Japanese vowels: a GRU hears an utterance frame by frame and says at its end who spoke",
    run,
)
