"""`python -m streamcell.study`: measure, draw, write docs/gradients.md. `make study` runs it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .settings import FULL, QUICK
from .write import write


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(prog="python -m streamcell.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page and its pictures")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes; figures mean nothing"
    )
    given = parser.parse_args(arguments)
    write(given.out, QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
