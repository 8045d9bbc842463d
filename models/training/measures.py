"""What a data set may ask to be measured beside the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData

from .g2p_evaluation import phoneme_errors
from .speech_evaluation import speech_errors

# What `SequenceData.measure` may name → the figures of a part, as shares.
MEASURES: Mapping[str, Callable[[SequenceModel, SequenceData, str], dict[str, float]]] = {
    "phoneme_errors": phoneme_errors,
    "speech_errors": speech_errors,
}
