"""StreamCell: serves models that have memory, as live sessions over gRPC.

The parts are sub-packages (`streamcell.client`, `streamcell.service`, …) in folders of their own beside this one; none
of them needs this file, so a folder of links to them without it is a working `streamcell` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__: str

__all__ = ["__version__"]

if not TYPE_CHECKING:  # to a type checker, a module with this function has every name

    def __getattr__(name):
        """Look up the version when it is asked for: importing a part reads no package metadata."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("streamcell")
