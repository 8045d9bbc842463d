"""All demos, by shape. Each has its own module and imports its needs when it runs."""

from __future__ import annotations

from . import chorales as demo_chorales
from . import cluster as demo_cluster
from . import continuation as demo_continue
from . import digits as demo_digits
from . import durable as demo_durable
from . import g2p as demo_g2p
from . import harmony as demo_harmony
from . import voice as demo_voice
from . import vowels as demo_vowels
from .base import SHAPES, Demo, Shape

DEMOS: tuple[Demo, ...] = (
    demo_digits.DEMO,
    demo_vowels.DEMO,
    demo_chorales.DEMO,
    demo_durable.DEMO,
    demo_cluster.DEMO,
    demo_harmony.DEMO,
    demo_voice.DEMO,
    demo_continue.DEMO,
    demo_g2p.DEMO,
)

# What `streamcell demo` runs if it is given no name.
DEFAULT = demo_chorales.DEMO


def by_name() -> dict[str, Demo]:
    """Every demo under its name."""
    return {demo.name: demo for demo in DEMOS}


def by_shape() -> list[tuple[Shape, list[Demo]]]:
    """The demos of each shape that has one, in the order of `SHAPES`."""
    found = [(shape, [demo for demo in DEMOS if demo.shape == shape]) for shape in SHAPES]
    return [(shape, demos) for shape, demos in found if demos]
