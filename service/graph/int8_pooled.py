"""A pooled model that multiplies in int8, for chunks and for single steps."""

from __future__ import annotations

from dataclasses import replace

from streamcell.card.graphs.int8_form import int8_form

from .pooled import Pooled
from .single_step import at_one_step, has_time


def int8_pooled(pooled: Pooled, lengths: str | None) -> tuple[Pooled, Pooled | None] | None:
    """`pooled` in int8 (see `int8_form`), and the same with time fixed at 1, in which no Scan is left of it.

    Both give the same values to the bit for one timestep.

    Args:
        pooled: a model in its pool.
        lengths: its input of lengths.

    Returns:
        None if the file stores no weight in int8, or none that can be used so. The second is None for a model without
        a time axis.
    """
    form = int8_form(pooled.model, lengths)
    if form is None:
        return None
    single = int8_form(at_one_step(pooled.model), lengths) if has_time(pooled.model) else None
    return replace(pooled, model=form), None if single is None else replace(pooled, model=single)
