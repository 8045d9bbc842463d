"""Makes the page: sentences whose numbers and words follow from the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from .adding import CHANCE, CLIP, DONE, LEARNED, MODELS, RATES, Run
from .depth import Deep
from .settings import Settings
from .through_time import Followed
from .words import listed, number, prose, seeds, table

TIME_PNG, ADDING_PNG, DEPTH_PNG = "time.png", "adding.png", "depth.png"

# The models of the adding problem as they begin, by their names in the first table.
FRESH = {"GRU": "GRU", "LSTM": "LSTM, forget bias 1"}

_HEAD = """\
# Gradients through time and through depth

`make study` writes this page: it measures everything again with the layers and models of `streamcell.models` and puts the
numbers into the text. Seeds are fixed: the same machine and PyTorch give the same figures.
"""

_SOURCES = """\
## Sources

- S. Hochreiter, *Untersuchungen zu dynamischen neuronalen Netzen*, diploma thesis, TU München, 1991.
- Y. Bengio, P. Simard, P. Frasconi, *Learning long-term dependencies with gradient descent is difficult*, IEEE Transactions on
  Neural Networks 5(2), 1994.
- S. Hochreiter, J. Schmidhuber, *Long short-term memory*, Neural Computation 9(8), 1997; the adding problem is its experiment 4.
- F. Gers, J. Schmidhuber, F. Cummins, *Learning to forget: continual prediction with LSTM*, Neural Computation 12(10), 2000.
- K. Cho et al., *Learning phrase representations using RNN encoder–decoder for statistical machine translation*, EMNLP 2014.
- R. Pascanu, T. Mikolov, Y. Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
- R. Jozefowicz, W. Zaremba, I. Sutskever, *An empirical exploration of recurrent network architectures*, ICML 2015.
- Q. Le, N. Jaitly, G. Hinton, *A simple way to initialize recurrent networks of rectified linear units*, 2015.
- X. Glorot, Y. Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010.
- K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers*, ICCV 2015; *Deep residual learning for image recognition*,
  CVPR 2016.
"""


def page(
    settings: Settings, followed: Sequence[Followed], runs: Sequence[Run], deep: Sequence[Deep], made: str
) -> str:
    """The whole page as Markdown. `made` describes the versions and machine of the measurement."""
    parts = [
        _HEAD,
        _time(settings, followed),
        _adding(settings, runs, followed),
        _depth(settings, deep),
        _SOURCES,
    ]
    return "\n".join([*parts, f"Measured with {made}.\n"])


def _time(settings: Settings, followed: Sequence[Followed]) -> str:
    lengths = sorted({one.length for one in followed})
    names = list(dict.fromkeys(one.layer for one in followed))
    ends = {(one.layer, one.length): one.norms[-1] for one in followed}
    longest = lengths[-1]
    rows = [[name, *(number(ends[name, length]) for length in lengths)] for name in names]
    vanishing = [name for name in names if ends[name, longest] < 1e-3]
    growing = [name for name in names if ends[name, longest] > 1e3]
    steady = [name for name in names if name not in vanishing and name not in growing]
    best = max((name for name in names if name not in growing), key=lambda n: ends[n, longest], default="")
    said = []
    if vanishing:
        said.append(
            f"Over {longest - 1} steps the gradient shrinks to less than a thousandth in {listed(vanishing)}: inputs that "
            "long ago have almost no influence on how the weights change."
        )
    if growing:
        said.append(
            f"The gradient grows over a thousandfold in {listed(growing)}: an update along it would be far too large."
        )
    if steady:
        said.append(f"The gradient stays within a factor of a thousand in {listed(steady)}.")
    if best:
        said.append(f"Of those that do not grow so, most is left in {best}: {number(ends[best, longest])}.")
    biased = [name for name in names if name.startswith("LSTM")]
    if len(biased) > 1:
        order = ", ".join(f"{number(ends[name, longest])} with {name.split(', ')[1]}" for name in biased)
        said.append(
            f"The LSTM's figures differ only in the initial bias of its forget gate ({order}); the gate multiplies the cell's "
            "state, and so its gradient, at every step."
        )
    return f"""\
## Back through time

A loss at the last of T timesteps reaches a state k steps back through a product of k Jacobians. Hochreiter (1991) and
Bengio et al. (1994) showed that such a product shrinks or grows exponentially in k in a plain recurrent network; Pascanu et al. (2013)
say when each happens. The LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000) carries its cell along a path that is a
sum, weighted by the forget gate.

One untrained layer of {settings.time_units} units, on {settings.time_rows} sequences of normal numbers,
{seeds(settings.time_seeds)}. The loss is a random projection of the last output. The table shows the norm of the gradient
with respect to the *first* state (all of it: h and c), divided by that with respect to the last. Recurrent weights are
initialised orthogonal unless stated otherwise; "uniform ±1/√H" is the initialisation of torch's own modules.

{table(["layer", *(f"T = {length}" for length in lengths)], rows)}

![Gradient norms against steps back](gradients/{TIME_PNG})

{prose(said)}
These are untrained weights: training changes them, and a gate that has learned to stay open forgets less.
"""


def _adding(settings: Settings, runs: Sequence[Run], followed: Sequence[Followed]) -> str:
    lengths = sorted({run.setting.length for run in runs})
    rows = []
    for model in MODELS:
        for clip in (None, CLIP):
            cells = [_cell([r for r in runs if _is(r, model, length, clip)]) for length in lengths]
            rows.append([model, "yes" if clip is not None else "no", *cells])
    said = []
    for model in MODELS:
        learned = [str(length) for length in lengths if any(r.learned for r in _of(runs, model, length))]
        if learned:
            said.append(f"The {model} learns it at T = {listed(learned)}.")
        else:
            said.append(f"The {model} learns it at no length within {settings.adding_updates} updates.")
    fresh = {(one.layer, one.length): one.norms[-1] for one in followed}
    little = [
        f"{layer}: {number(fresh[layer, lengths[-1]])}"
        for model, layer in FRESH.items()
        if fresh.get((layer, lengths[-1]), 1.0) < 1e-3
        and any(run.learned for run in _of(runs, model, lengths[-1]))
    ]
    if little:
        said.append(
            "A small gradient through an untrained layer does not prevent learning: for the same number of steps, the first "
            f"table has {'; '.join(little)}."
        )
    said += list(_clipping(runs))
    lost = sum(not math.isfinite(run.norms[-1]) for run in runs)
    said.append(
        f"Runs that ended with a gradient that was not finite, which clipping cannot prevent: {lost} of {len(runs)}."
    )
    return f"""\
## The adding problem

Two channels: numbers from [0, 1) and marks, of which two are set, one in each half of the sequence. After the last timestep the
network must output the sum of the two marked numbers (Hochreiter & Schmidhuber 1997). A constant output of 1 has a mean square
error of {CHANCE:.3f}; a run counts as learned if the error on {settings.adding_test} fresh sequences is below {LEARNED}.

One layer of {settings.adding_units} units, {settings.adding_rows} fresh sequences an update, {settings.adding_updates}
updates of Adam (fewer once the training error is below {DONE}), {seeds(settings.adding_seeds)}; learning rates {_rates()}. "Clipped": the gradient's global norm is bounded by
{CLIP:g} (Pascanu et al. 2013). {_kinds()} Each cell: runs that learned it; median test error; median updates until the training
error, averaged over 20 updates, first fell below {LEARNED}.

{table(["model", "clipped", *(f"T = {length}" for length in lengths)], rows)}

![Training errors](gradients/{ADDING_PNG})

{prose(said)}
"""


def _clipping(runs: Sequence[Run]) -> Iterable[str]:
    """What clipping did, model by model."""
    for model in MODELS:
        free = [run for run in runs if run.setting.model == model and run.setting.clip is None]
        bound = [run for run in runs if run.setting.model == model and run.setting.clip is not None]
        if not free or not bound:
            continue
        largest = max(norm for run in free for norm in run.norms if math.isfinite(norm))
        with_bound, without = (sum(run.learned for run in group) for group in (bound, free))
        yield (
            f"{model}: of {len(bound)} runs each, {with_bound} learned it with clipping and {without} without; the largest finite "
            f"gradient of an unclipped run had norm {number(largest)}."
        )


def _depth(settings: Settings, deep: Sequence[Deep]) -> str:
    depths = sorted({one.depth for one in deep})
    kinds = list(dict.fromkeys(one.kind for one in deep))
    by = {(one.kind, one.depth): one for one in deep}
    ratios = [[kind, *(number(by[kind, depth].first) for depth in depths)] for kind in kinds]
    losses = [
        [kind, *(f"{number(by[kind, d].loss)} ({by[kind, d].accuracy:.0%})" for d in depths)]
        for kind in kinds
    ]
    said = []
    for kind in kinds:
        solved = [depth for depth in depths if by[kind, depth].accuracy >= 0.99]
        if len(solved) == len(depths):
            told = "parts the spirals (99 % right or more) at every depth"
        elif solved:
            told = f"parts the spirals with {listed([str(depth) for depth in solved])} blocks and at no other depth"
        else:
            told = "parts the spirals at no depth"
        said.append(f"{kind[0].upper()}{kind[1:]} {told}.")
    deepest = depths[-1]
    said.append(
        f"At {deepest} blocks the first block's gradient is "
        + ", ".join(f"{number(by[kind, deepest].first)} of the last's with {kind}" for kind in kinds)
        + "."
    )
    return f"""\
## Depth

Depth is the same product with other matrices. The derivative of the sigmoid is at most 1/4, that of ReLU 0 or 1 (Glorot & Bengio 2010);
a residual block, x + f(x), passes the gradient on beside its own layer (He et al. 2016).

Perceptrons of blocks of {settings.depth_units} units, {seeds(settings.depth_seeds)}, each with the initialisation advised for it: Glorot's for
sigmoid, He's for ReLU, torch's default for residual blocks. First what reaches the first square block before training, as the norm of its
weights' gradient over that of the last block:

{table(["", *(f"{depth} blocks" for depth in depths)], ratios)}

Then the cross-entropy in nats, and the share on the right side, on {settings.depth_points} points of two spirals wound into each other, after
{settings.depth_updates} updates of Adam (guessing: 0.693, 50 %):

{table(["", *(f"{depth} blocks" for depth in depths)], losses)}

![First block's gradient and loss against depth](gradients/{DEPTH_PNG})

{prose(said)}
"""


def _of(runs: Sequence[Run], model: str, length: int) -> list[Run]:
    return [run for run in runs if run.setting.model == model and run.setting.length == length]


def _is(run: Run, model: str, length: int, clip: float | None) -> bool:
    return (run.setting.model, run.setting.length, run.setting.clip) == (model, length, clip)


def _cell(runs: Sequence[Run]) -> str:
    learned = sum(run.learned for run in runs)
    told = f"{learned}/{len(runs)}; {number(median(run.test for run in runs))}"
    firsts = [first for run in runs if (first := run.first_below) is not None]
    return told + (f"; {median(firsts):.0f}" if firsts else "")


def _rates() -> str:
    return listed([f"{rate:g} for {model}" for model, rate in RATES.items()])


def _kinds() -> str:
    return "The RNN's activation is tanh; IRNN is a ReLU RNN whose recurrent weights begin as the identity (Le et al. 2015)."
