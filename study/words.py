"""Numbers, lists and tables as the page writes them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def seeds(seeds: Sequence[int]) -> str:
    """How many there are."""
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def prose(sentences: Sequence[str]) -> str:
    """A paragraph, in lines of 120 characters."""
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def listed(names: Sequence[str]) -> str:
    """Names as in 'a, b and c'; a name with a comma or a bracket of its own in quotation marks."""
    quoted = [f"“{name}”" if "," in name or "(" in name else name for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def number(value: float) -> str:
    """Two digits; a power of ten if that is shorter."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_RAISED)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
