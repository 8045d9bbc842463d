"""What operators alone may do."""

from __future__ import annotations

from .access_errors import NotPermitted
from .identity import Identity


def check_operator(caller: Identity, what: str) -> None:
    """Raise NotPermitted unless `caller` is an operator."""
    if not caller.operator:
        raise NotPermitted(
            f"{what} is for operators: it concerns every tenant; call with an operator's credential",
            call=what,
        )
