"""The data set `digits`: handwritten digits of 8×8 pixels, one image a timestep (Alpaydin and Kaynak 1998).

The file is the test part of UCI's "Optical Recognition of Handwritten Digits", 1,797 images of 13 writers, inside
the PyPI package scikit-learn.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from streamcell.models.errors import DataError

from .packaged import one_hot, packaged_file, source
from .sequences import Floats, SequenceData, Series, Standard

PACKAGE = "scikit-learn"
PIXELS, DIGITS, WHITE = 64, 10, 16.0
# Of the images, in the order of the file, which goes from writer to writer.
TRAIN, VALID = 0.6, 0.1


def load_digits() -> SequenceData:
    """The images in the file's order: the first 60 % for training, 10 % for validation, the last 30 % for the test.

    Raises:
        DataError: scikit-learn is not installed, or its file has changed.
    """
    file = packaged_file(PACKAGE, "sklearn/datasets/data/digits.csv.gz", wanted_by="the digits")
    pixels, digits = read_digits(file)
    images = [Series(x[None], y[None]) for x, y in zip(pixels, one_hot(digits, DIGITS), strict=True)]
    first, second = int(len(images) * TRAIN), int(len(images) * (TRAIN + VALID))
    return SequenceData(
        "digits",
        train=images[:first],
        valid=images[first:second],
        test=images[second:],
        distribution="categorical_logits",
        # Pixels are 0 to 16. Standardised one by one, pixels that are almost always white would get huge values.
        input_standard=Standard(np.zeros(PIXELS, np.float32), np.full(PIXELS, WHITE, np.float32)),
        about={"source": f"{source(PACKAGE)}, digits", "classes": [str(digit) for digit in range(DIGITS)]},
    )


def read_digits(path: Path) -> tuple[Floats, list[int]]:
    """Pixels float32[images, 64] and the digit of each, from a gzipped CSV file of 65 columns.

    Raises:
        DataError: the file is not of this layout.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error
    if table.shape[1] != PIXELS + 1:
        raise DataError(f"{path.name} has {table.shape[1]} columns; expected {PIXELS} pixels and a digit")
    pixels, digits = table[:, :PIXELS], table[:, PIXELS]
    if pixels.min() < 0 or pixels.max() > WHITE or not np.isin(digits, np.arange(DIGITS)).all():
        raise DataError(f"{path.name}: expected pixels from 0 to {WHITE:g} and digits from 0 to 9")
    return pixels, [int(digit) for digit in digits]
