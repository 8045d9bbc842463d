"""Modules with one mistake put in, for tests that must notice it."""

from __future__ import annotations

import importlib
import types
from pathlib import Path


def changed(text: str, old: str, new: str) -> str:
    """`text` with its only `old` replaced."""
    assert text.count(old) == 1, f"{text.count(old)} times in the text: {old!r}"
    return text.replace(old, new)


def mutant(module: str, *changes: str) -> types.ModuleType:
    """A copy of that module of `streamcell` with texts changed: old, new, old, new, … It replaces nothing."""
    original = importlib.import_module(f"streamcell.{module}")
    assert original.__file__ is not None
    made = types.ModuleType(original.__name__)
    made.__package__, made.__file__ = original.__package__, original.__file__
    source = Path(original.__file__).read_text()
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        source = changed(source, old, new)
    exec(compile(source, original.__file__, "exec"), made.__dict__)
    return made
