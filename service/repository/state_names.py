"""Finds states of a graph by the names of inputs and outputs: `h` → `h_next`, `past_k` → `present_k`, …"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from streamcell.service.graph.interface import GraphValue

# Words that mean "of the previous step" or "of the next step" …
_BEFORE = frozenset({"prev", "previous", "past", "initial", "init", "old", "last"})
_AFTER = frozenset({"next", "new", "present", "updated", "n"})
# … and words that only name a side of the graph, so the rest of the name must be a state's.
_IN = frozenset({"in", "input", "0"})
_OUT = frozenset({"out", "output"})
_STATE_WORDS = frozenset(
    ("h", "c", "s", "hx", "cx", "hidden", "cell", "state", "states", "mem", "memory", "cache")
) | {
    *(
        "caches",
        "buf",
        "buffer",
        "ctx",
        "context",
        "carry",
        "hist",
        "history",
        "kv",
        "rnn",
        "lstm",
        "gru",
        "past",
    )
}

_Stem = tuple[str, ...]
# Of a name with a marker; one of more words, each of which may be the marker, has no other reading.
_MOST_WORDS = 64


def tokens(name: str) -> _Stem:
    """The words and numbers of `name`, in lower case: "stateN" → ("state", "n"), "h_0" → ("h", "0")."""
    marked = name.replace("'", "_next_")
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", marked)]
    for side in ("past", "present"):
        # The decoder exports of Hugging Face: past_key_values.0.key → present.0.key.
        if words[:3] == [side, "key", "values"]:
            words = [side, *words[3:]]
    return tuple(words)


def sounds_like_state(name: str) -> bool:
    """True if a word of `name` is usual for states."""
    words = tokens(name)
    return any(word in _STATE_WORDS or word in _BEFORE for word in words)


def alike(a: GraphValue, b: GraphValue) -> bool:
    """True if an input and an output have one dtype and one shape, except for sizes of 1 that the other leaves open.

    Exporters write down the batch or the time of an example as 1 on one side, and a symbol on the other.
    """
    if a.dtype != b.dtype or a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return False
    if a.dims == b.dims and len(a.dims) > 1:
        return True
    pairs = list(zip(a.dims, b.dims, strict=True))
    told_apart = any(p != q and any(isinstance(d, int) and d != 1 for d in (p, q)) for p, q in pairs)
    return not told_apart and any(p == q and isinstance(p, int) and p > 1 for p, q in pairs)


def likely_states(
    inputs: Mapping[str, GraphValue], outputs: Mapping[str, GraphValue]
) -> list[tuple[str, str]]:
    """Pairs that are likely states by their shapes, each name once; at least one input and one output remain.

    Mostly the first input and the first output are the signal, so they are taken last.
    """
    ins = [name for name, port in inputs.items() if port.dims != ()]
    outs = list(outputs)
    # An output whose sizes are all fixed does not follow the inputs, unless all of them are.
    signals = {name for name, port in outputs.items() if port.dims is None or port.dynamic_axes} or {*outs}
    found: list[tuple[str, str]] = []
    for i in (*ins[1:], *ins[:1]):
        for o in [each for each in (*outs[1:], *outs[:1]) if alike(inputs[i], outputs[each])]:
            if len(found) + 1 < len(ins) and signals - {o, *(taken for _, taken in found)}:
                outs.remove(o)
                found.append((i, o))
                break
    return found


def possible_states(
    inputs: Mapping[str, GraphValue], outputs: Mapping[str, GraphValue]
) -> Iterator[tuple[str, str]]:
    """All pairs that can be states by their shapes, even if the output is also needed. The first input is none."""
    for i in list(inputs)[1:]:
        yield from ((i, o) for o in outputs if alike(inputs[i], outputs[o]))


def may_be_lengths(port: GraphValue) -> bool:
    """True if an input may be the number of timesteps of each row."""
    return port.dtype in ("int32", "int64") and len(port.dims or ()) == 1 and "len" in port.name.lower()


def state_pairs(inputs: Mapping[str, GraphValue], outputs: Mapping[str, GraphValue]) -> list[tuple[str, str]]:
    """All (input, output) pairs that are states by their names, in the inputs' order.

    Dtype and shape play no part here. A name may occur in several pairs: then it is not clear which one holds.
    """
    names = list(outputs)
    # The outputs with each reading, by their place, and whether their marker alone makes it a state.
    after: dict[_Stem, list[tuple[int, bool]]] = {}
    for place, name in enumerate(names):
        for stem, marked in _readings_after(name).items():
            after.setdefault(stem, []).append((place, marked))
    pairs = []
    for i in inputs:
        found = {
            place
            for stem, marked in _readings(i, _BEFORE, _IN).items()
            for place, also in after.get(stem, ())
            if names[place] != i and (marked or also or not _STATE_WORDS.isdisjoint(stem))
        }
        pairs += [(i, names[place]) for place in sorted(found)]
    return pairs


def _readings_after(name: str) -> dict[_Stem, bool]:
    """The readings of an output's name."""
    readings = _readings(name, _AFTER, _OUT)
    *words, last = tokens(name) or ("",)
    if len(last) > 1 and last.endswith("n"):
        # hn, cn
        readings[(*words, last[:-1])] = True
    return readings


def _readings(name: str, strong: frozenset[str], weak: frozenset[str]) -> dict[_Stem, bool]:
    """The possible rests of `name` without its marker → True if that marker alone makes it a state."""
    words = tokens(name)
    readings = {words: False}
    if len(words) > _MOST_WORDS:
        return readings
    for place, marker in enumerate(words):
        stem = words[:place] + words[place + 1 :]
        # Inside a name these two are more likely a number and a letter than markers.
        outer = place in (0, len(words) - 1) or marker not in ("0", "n")
        if stem and outer and (marker in strong or marker in weak):
            readings[stem] = marker in strong
    return readings
