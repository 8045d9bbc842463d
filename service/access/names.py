"""The names of tenants and subjects, as files, tokens and certificates give them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

# What may stand in a log line, a metric's label and a file.
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x20\x7f-\x9f]+$")]

_name = TypeAdapter(Name)


def is_name(value: object) -> bool:
    """True for a text of 1 to 128 characters without spaces and control characters."""
    try:
        _name.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
