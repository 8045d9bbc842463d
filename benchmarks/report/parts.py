"""Parts of a page that a command writes, between two comments."""

from __future__ import annotations

import re
from pathlib import Path


def put(page: Path, part: str, text: str) -> None:
    """Replace what is between `<!-- PART: begin -->` and `<!-- PART: end -->`.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    new, count = re.subn(
        f"{begin}.*{end}", lambda _: f"{begin}\n\n{text}\n\n{end}", page.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page}: expected one part {part} between {begin} and {end}")
    page.write_text(new)
