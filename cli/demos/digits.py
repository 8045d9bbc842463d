"""The demo `digits`: one input, one output, nothing to remember; asked as whole batches and as streams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report

if TYPE_CHECKING:
    import numpy as np

    from streamcell.cli.demos.shared.sessions import Floats

# Images of a `Predict` call, and of the picture.
_BATCH, _ROWS, _COLUMNS = 64, 4, 12


def run(folder: Path, options: Options) -> Report:
    """Train an MLP on handwritten digits, export it, serve it, ask it for every test image in both ways."""
    import numpy as np

    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.sessions import common_rows, stream
    from streamcell.client import AsyncSession, connect
    from streamcell.client.local_server import ServerProcess
    from streamcell.models import score
    from streamcell.models.training import presets

    config = presets.config("digits", out=folder, data_folder=options.data_folder, **options.training())
    trained = prepare(config, "digits", retrain=options.retrain, console=options.console)
    images = np.concatenate([series.x for series in trained.test])
    truth = np.concatenate([series.y for series in trained.test]).argmax(1)

    async def through(session: AsyncSession, image: Floats) -> Floats:
        answer: Floats = await session.step(image)
        return answer

    options.console.print(
        f"sending {len(images)} images through Predict, then through {options.sessions} streams …"
    )
    with ServerProcess(trained.models) as server:
        with connect(server.target) as client:
            starts = range(0, len(images), _BATCH)
            answers = [client.predict("digits", images[at : at + _BATCH, None])[:, 0] for at in starts]
        predicted = np.concatenate(answers)
        one_by_one, figures = stream(server, "digits", list(images), options.sessions, through)
    streamed = np.stack(one_by_one)

    torch_score = score(trained.module, trained.data, "test")
    figures |= {
        "loss_torch": torch_score.loss,
        "accuracy_torch": torch_score.accuracy,
        "accuracy_predict": float((predicted.argmax(1) == truth).mean()),
        "accuracy_streamed": float((streamed.argmax(1) == truth).mean()),
        "largest_difference": float(np.abs(predicted - streamed).max()),
    }
    picture = folder / "digits.png"
    _draw(picture, images, truth, streamed.argmax(1))
    rows = [
        ("test accuracy in PyTorch", f"{figures['accuracy_torch']:.2%}"),
        ("accuracy through Predict, 64 images per call", f"{figures['accuracy_predict']:.2%}"),
        ("accuracy through streams, one image per message", f"{figures['accuracy_streamed']:.2%}"),
        ("largest difference between their logits", f"{figures['largest_difference']:.1e}"),
        *common_rows(figures),
    ]
    files = {"loss curve": trained.loss_plot, "digits and answers": picture, "exported model": trained.path}
    return Report("Handwritten digits, served", rows, figures, files).save(folder)


def _draw(path: Path, images: Floats, truth: np.ndarray, said: np.ndarray) -> None:
    """The images with the model's answer above each; wrong answers come first, in red."""
    import numpy as np
    from matplotlib.figure import Figure

    order = np.argsort(truth == said, kind="stable")[: _ROWS * _COLUMNS]
    figure = Figure(figsize=(_COLUMNS * 0.8, _ROWS * 1.1), layout="constrained")
    for axes, index in zip(figure.subplots(_ROWS, _COLUMNS).flat, order, strict=True):
        axes.imshow(images[index].reshape(8, 8), cmap="gray_r")
        right = truth[index] == said[index]
        text = f"{said[index]}" if right else f"{said[index]}, not {truth[index]}"
        axes.set_title(text, fontsize=8, color="black" if right else "red")
        axes.axis("off")
    figure.savefig(path, dpi=120)


DEMO = Demo(
    "digits",
    "one-to-one",
    "handwritten digits: an MLP, whole batches through Predict and single images through streams",
    run,
)
