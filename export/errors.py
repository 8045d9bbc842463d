"""Errors of an export, as one type for each kind."""

from __future__ import annotations


class ExportError(ValueError):
    """Base of every error that this package raises; no file is left behind by an export that ends in one."""


class ProofError(ExportError):
    """The graph was made, but ONNX Runtime does not give what PyTorch gives within the tolerance."""


class SpecError(ExportError):
    """`path/to/file.py:factory` does not name something that gives a module."""


class Misfit(ExportError):
    """A module cannot be called in the way that was tried; another way may do."""


class UserCodeError(Misfit):
    """The user's own code raised an exception; the text has it and the last line of that code."""
