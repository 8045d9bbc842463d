"""What another process needs to go on with a session."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Ticket:
    """What another process needs to go on with a session. Whoever has it owns the session: keep it secret.

    It holds no messages. If a session is in a shared store that lacks the last ones, and their server is lost together
    with this process, nobody can send them again: `Client.resume` then raises StateBehind.

    Attributes:
        session: the session's id, in hexadecimal.
        token: the secret, in hexadecimal.
        received: the messages whose replies were returned to the caller.
        received_steps: timesteps that have arrived of a generation in progress.
        attempt: of the last opening.
        replica: the one server that has the session; empty if a shared store has it, or the server has no name.
    """

    session: str
    token: str
    received: int = 0
    received_steps: int = 0
    attempt: int = 0
    replica: str = ""

    def to_json(self) -> str:
        """The ticket as a text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Ticket:
        """The ticket that `to_json` has written. Raises ValueError or TypeError if it is none."""
        return cls(**json.loads(text))
