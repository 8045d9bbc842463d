"""Writes the flags of `streamcell serve` from `Settings`: `python cli/generate.py`; `--check` fails if they differ.

Descriptions, defaults and bounds are in `service/settings.py` only. The flags are written to a file so that
`streamcell --help` works without the packages that the settings need.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from streamcell.service.settings import Settings

FILE = Path(__file__).parent / "commands" / "serve_flags.py"
SPELLINGS = {"unload_grace_s": ("--unload-grace-s", "--unload-grace")}

_HEAD = '''# Made from service/settings.py by cli/generate.py: change that file.
"""The flags of `streamcell serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_Option = typer.Option


def with_flags(run: Callable[[Path | None, dict[str, Any]], None]) -> Callable[..., None]:
    """A command with a flag for each setting. It calls `run` with the TOML file and the flags; None: not given."""

    def command(
'''
_TAIL = '''        config: Annotated[Path | None, _Option(help="TOML file with any of these settings.")] = None,
    ) -> None:
        """Serve every model of a folder over gRPC, with metrics for Prometheus.

        Each setting can also be given as STREAMCELL_NAME or in the TOML file; flags win over the environment,
        the environment over the file.
        """
        run(config, {key: value for key, value in locals().items() if key not in ("config", "run")})

    return command
'''


def _kind(annotation: Any) -> str:
    """How the command line spells a setting's type."""
    if get_origin(annotation) is Literal:
        return "str"
    if annotation in (str, int, float, bool, Path):
        return str(annotation.__name__)
    arguments = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) is tuple:
        return f"list[{_kind(arguments[0])}]"
    return _kind(arguments[0])


def _default(field: FieldInfo) -> str:
    """A flag's default in words; empty for a setting without a default."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "unset" in extra:
        return str(extra["unset"])
    default = field.get_default()
    if field.is_required() or default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def flags() -> str:
    """The text of `serve_flags.py`."""
    lines = []
    for name, field in Settings.model_fields.items():
        assert field.description, f"the setting {name} has no description"
        default = _default(field)
        text = f"{field.description}  [{default}]" if default else field.description
        spelled = "".join(f"{each!r}, " for each in SPELLINGS.get(name, ()))
        kind = _kind(field.annotation)
        lines.append(f"        {name}: Annotated[{kind} | None, _Option({spelled}help={text!r})] = None,\n")
    text = _HEAD + "".join(lines) + _TAIL
    command = (sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", FILE, "-")
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Write the file, or with `--check` compare it."""
    text = flags()
    if "--check" in sys.argv[1:]:
        if FILE.read_text() == text:
            return 0
        sys.stderr.write("cli/commands/serve_flags.py is out of date: run `python cli/generate.py`\n")
        return 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
