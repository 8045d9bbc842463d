"""What an audit log tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def audit_lines(path: Path) -> list[dict[str, Any]]:
    """All events of a log."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
