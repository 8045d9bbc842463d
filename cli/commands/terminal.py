"""What others say, on a terminal."""

from __future__ import annotations


def as_line(text: object) -> str:
    """`text` in one line: what a server or a file says must not move the terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
