"""The demo `continue`: the server goes on with chorales from their first bars; MIDI files and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Demo, Options, Report
from .chorales import EPOCHS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamcell.cli.demos.shared.prepare import Trained

    from .continuation_served import Continued

_PIECES = 4
_MARGIN = 3  # keys shown beyond the lowest and highest


def run(folder: Path, options: Options) -> Report:
    """Continue held-out chorales with the model of the demo `chorales`, which is trained here if it is not there."""
    import numpy as np

    from streamcell.models import bernoulli_nll, write_midi

    from .continuation_served import PROMPT, STEPS, continue_served

    trained = _trained(folder, options)
    longest = sorted(trained.test, key=len, reverse=True)[: max(1, min(_PIECES, options.sessions))]
    prompts = [series.x[:PROMPT] for series in longest]
    options.console.print(f"continuing {len(prompts)} held-out chorales by {STEPS} quarter notes each …")
    pieces, figures = continue_served(trained, prompts)
    files: dict[str, Path] = {}
    for number, piece in enumerate(pieces, 1):
        files[f"chorale {number}"] = folder / f"continued-{number}.mid"
        write_midi(files[f"chorale {number}"], piece.chords)
    truths = [np.concatenate((series.x[:1], series.y))[: PROMPT + STEPS] for series in longest]
    files["piano roll"] = folder / "piano_roll.png"
    _draw(files["piano roll"], truths[:2], pieces[:2])
    nats = [bernoulli_nll(piece.logits[PROMPT - 1 : -1], piece.chords[PROMPT:]) for piece in pieces]
    figures |= {
        "pieces": len(pieces),
        "prompt_steps": PROMPT,
        "added_steps": STEPS,
        "notes_a_chord": float(np.mean([piece.chords[PROMPT:].sum(1) for piece in pieces])),
        "notes_a_chord_of_bach": float(
            np.mean([chord.sum() for truth in truths for chord in truth[PROMPT:]])
        ),
        "nats_a_chord": float(np.mean(np.concatenate([np.asarray(piece) for piece in nats]))),
        "test_loss": trained.loss,
        "largest_error_against_torch": max(_error(trained, piece) for piece in pieces),
    }
    return Report("Chorales, continued by the server", _rows(figures), figures, files).save(folder)


def _trained(folder: Path, options: Options) -> Trained:
    """The model of the demo `chorales` where that has run, else one that is trained in this demo's folder."""
    from streamcell.cli.demos.shared.prepare import finished, prepare
    from streamcell.models.training import presets

    from .registry import DEFAULT
    from .registry import folder as folder_of

    shared = folder_of(DEFAULT)
    out = shared if not options.retrain and finished(shared) else folder
    config = presets.config("chorales", out=out, data_folder=options.data_folder, **options.training(EPOCHS))
    return prepare(config, "chorales", retrain=options.retrain, console=options.console)


def _error(trained: Trained, piece: Continued) -> float:
    """The largest difference of a served output to PyTorch's, given the same chords."""
    import numpy as np
    import torch

    with torch.no_grad():
        y = trained.module(torch.from_numpy(piece.chords)[None])[0]
    return float(np.abs(y[0].numpy() - piece.logits).max())


def _rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "pieces, quarter notes given and added",
            "{pieces}, {prompt_steps} and {added_steps}".format(**figures),
        ),
        ("notes a chord, Bach's", "{notes_a_chord:.2f}, {notes_a_chord_of_bach:.2f}".format(**figures)),
        (
            "loss of the added chords, of held-out Bach",
            "{nats_a_chord:.2f}, {test_loss:.2f} nats a chord".format(**figures),
        ),
        ("largest error against PyTorch", "{largest_error_against_torch:.1e}".format(**figures)),
        ("a step fed by the server", "{us_a_step_by_server:.0f} µs".format(**figures)),
        ("a step fed by the client", "{us_a_step_by_client:.0f} µs".format(**figures)),
        ("… that fed the same", "{steps_alike} of {compared_steps}".format(**figures)),
    ]


def _draw(path: Path, truths: Sequence[NDArray[Any]], pieces: Sequence[Continued]) -> None:
    """Each piece as Bach wrote it, above the same with what the server added; a line where it took over."""
    import numpy as np
    from matplotlib.figure import Figure

    from streamcell.models.data.piano import LOWEST

    from .continuation_served import PROMPT

    rolls = [roll for truth, piece in zip(truths, pieces, strict=True) for roll in (truth, piece.chords)]
    keys = np.flatnonzero(np.concatenate(rolls).any(axis=0))
    low, high = max(keys.min() - _MARGIN, 0), keys.max() + _MARGIN + 1
    figure = Figure(figsize=(11, 2.6 * len(rolls)), layout="constrained")
    for index, (axes, roll) in enumerate(
        zip(figure.subplots(len(rolls), 1, sharex=True), rolls, strict=True)
    ):
        axes.imshow(
            roll[:, low:high].T,
            origin="lower",
            aspect="auto",
            extent=(0.0, float(len(roll)), low + LOWEST - 0.5, high + LOWEST - 0.5),
            cmap="Greys",
            interpolation="nearest",
        )
        axes.axvline(PROMPT, color="C3")
        whose = "continued by the server from the red line on" if index % 2 else "as Bach wrote it"
        axes.set(ylabel="MIDI pitch", title=f"chorale {index // 2 + 1}, {whose}")
    axes.set(xlabel="quarter notes")
    figure.savefig(path, dpi=110)


DEMO = Demo(
    "continue",
    "one-to-many",
    "chorales continued: the server generates sixteen bars from the first four; MIDI and a piano roll",
    run,
)
