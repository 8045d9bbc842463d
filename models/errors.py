"""Errors of models and data sets, as one type for each kind."""

from __future__ import annotations


class ModelError(ValueError):
    """Base of every error that this package raises on bad input."""


class ConfigError(ModelError):
    """A configuration that no model can be built from, or that a run cannot be made from."""


class ShapeError(ModelError):
    """A tensor whose shape does not fit the model it was given to."""


class DataError(ModelError):
    """A data set that cannot be read; the text names the file and the place in it."""


class RunError(ModelError):
    """A run folder that is missing, incomplete or of another configuration."""
