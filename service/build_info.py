"""Whether the hot path is compiled. It is all or nothing: this module is compiled with the others."""

from __future__ import annotations

COMPILED = not __file__.endswith(".py")
