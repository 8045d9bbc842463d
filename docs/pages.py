"""What mkdocs makes from the code: pages of settings, commands and the protocol, and the pages beside docs/.

A hook of mkdocs (mkdocs.yml): `on_files` adds the pages, `on_page_markdown` turns links to files that are no pages into
their names.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from streamcell.cli.main import COMMANDS, app
from streamcell.service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto/streamcell/v1/streamcell.proto"
PROJECT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
# A block of code that says which file it is: mkdocs wants that as a title, or takes the block for text.
_NAMED_BLOCK = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {"settings.md": settings_page(), "commands.md": commands_page(), "protocol.md": protocol_page()}
    made |= {f"project/{name}": (ROOT / name).read_text() for name in PROJECT}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between docs/ and the project's root to the site's pages; of other files only the name is left.

    Blocks of code that name their file get it as a title.
    """
    here = page.file.src_uri
    folder = "" if here.startswith("project/") else "docs"

    def replaced(match: re.Match[str]) -> str:
        text, link = match.groups()
        path, hash_, part = link.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match.group(0)
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in PROJECT:
            target = f"project/{target}"
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return text if path in text else f"{text} (`{target}`)"
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{hash_}{part})"

    return _LINK.sub(replaced, _NAMED_BLOCK.sub(r'```\1 title="\2"', markdown))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def settings_page() -> str:
    """Every setting of `streamcell serve`, from `service/settings.py`."""
    lines = [
        "# Settings", "",
        "Each setting of `streamcell serve` is a flag, an environment variable `STREAMCELL_…` and a key of the "
        "TOML file that `--config` names. A flag wins over the environment, the environment over the file. A key "
        "that is not in this table is an error.", "",
        "| flag | key | default | |", "|---|---|---|---|",
    ]  # fmt: skip
    options = {each.name: each for each in _command("serve").params if each.param_type_name == "option"}
    for name, field in Settings.model_fields.items():
        flags = ", ".join(f"`{flag}`" for flag in (*options[name].opts, *options[name].secondary_opts))
        default = field.get_default()
        shown = "" if field.is_required() or default in (None, ()) else f"`{default}`"
        lines.append(f"| {flags} | `{name}` | {_cell(shown)} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _command(name: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands[name]


def commands_page() -> str:
    """Every command, from its own help."""
    lines = ["# Commands", ""]
    for name in COMMANDS:
        lines += [f"## streamcell {name}", ""]
        command = _command(name)
        each = getattr(command, "commands", {})
        lines += _described(command, f"streamcell {name}")
        for sub, subcommand in each.items():
            lines += [f"### streamcell {name} {sub}", "", *_described(subcommand, f"streamcell {name} {sub}")]
    return "\n".join(lines) + "\n"


def _described(command: Any, path: str) -> list[str]:
    lines = [inspect.cleandoc(command.help or "").replace("\b", ""), ""]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([path, *(each.metavar or each.name.upper() for each in arguments)])
    lines += ["```", usage + (" [OPTIONS]" if len(command.params) > len(arguments) else ""), "```", ""]
    if path == "streamcell serve":
        return [*lines, "Its options are the [settings](settings.md).", ""]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    if options:
        lines += ["| option | |", "|---|---|"]
        lines += [
            f"| {', '.join(f'`{flag}`' for flag in (*each.opts, *each.secondary_opts))} | {_cell(each.help or '')} |"
            for each in options
        ]
        lines.append("")
    return lines


def protocol_page() -> str:
    """The services, messages and enumerations of streamcell.proto with their comments, linked to each other."""
    blocks = list(_blocks(PROTO.read_text().splitlines()))
    known = {name for kind, name, _, _ in blocks if kind != "service"}
    lines = [
        "# Protocol", "",
        "From `proto/streamcell/v1/streamcell.proto`. The same port speaks the "
        "[Open Inference Protocol](triton.md), health and reflection.", "",
    ]  # fmt: skip

    def linked(text: str) -> str:
        return re.sub(
            r"\b[A-Z]\w+\b", lambda m: f"[{m[0]}](#{m[0].lower()})" if m[0] in known else m[0], text
        )

    for kind, name, comment, members in blocks:
        lines += [f"## {name}", "", f"*{kind}*", "", comment, ""]
        if members:
            lines += ["| | | |", "|---|---|---|"]
            lines += [f"| `{member}` | {linked(what)} | {_cell(said)} |" for member, what, said in members]
            lines.append("")
    return "\n".join(lines) + "\n"


_BLOCK = re.compile(r"(service|message|enum) (\w+) \{(\})?")
_RPC = re.compile(r"rpc (\w+)\((.*?)\) returns \((.*?)\);")
_FIELD = re.compile(r"((?:repeated |optional )?[\w.<>, ]+?) (\w+) = (\d+);")
_VALUE = re.compile(r"(\w+) = (\d+);")


def _blocks(lines: list[str]) -> Iterator[tuple[str, str, str, list[tuple[str, str, str]]]]:
    """(kind, name, comment, [(member, type, comment)]) of each block; a nested one's members join the outer one's."""
    comment: list[str] = []
    current: tuple[str, str, str, list[tuple[str, str, str]]] | None = None
    depth = 0
    for line in (each.strip() for each in lines):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        said, block = " ".join(comment), _BLOCK.match(line)
        if block and depth == 0:
            current = (block[1], block[2], said, [])
        elif current is not None:
            if rpc := _RPC.match(line):
                current[3].append((rpc[1], f"{rpc[2]} → {rpc[3]}", said))
            elif current[0] == "enum" and (value := _VALUE.match(line)):
                current[3].append((value[1], value[2], said))
            elif field := _FIELD.match(line):
                current[3].append((field[2], field[1], said))
        depth += line.count("{") - line.count("}")
        if current is not None and depth == 0:
            yield current
            current = None
        comment = []


if __name__ == "__main__":
    sys.stdout.write(settings_page() + commands_page() + protocol_page())
