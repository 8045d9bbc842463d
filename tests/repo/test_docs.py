"""What the pages say that can be looked up: flags, files and links."""

from __future__ import annotations

import ast
import importlib
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from streamcell import client
from streamcell.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# Of Triton's server and perf_analyzer, and of Prometheus.
FOREIGN = {
    "--model-control-mode", "--repository-poll-secs", "--exit-timeout-secs", "--input-data", "--enable-feature",
}  # fmt: skip

# Pages that the site makes from the code (docs/pages.py); tests/repo/test_site.py holds links to them.
MADE = {ROOT / "docs" / name for name in ("settings.md", "commands.md", "protocol.md")}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def flags() -> dict[str, set[str]]:
    """Each command's flags."""
    group = typer.main.get_command(app)
    found = {}
    for name in COMMANDS:
        options = group.commands[name].params  # type: ignore[attr-defined]
        found[name] = {flag for each in options for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    return found


@pages
def test_every_flag_is_one_that_the_command_has(page: Path) -> None:
    text, known = re.sub(r"\\\n\s*", " ", page.read_text()), flags()
    for command, rest in re.findall(rf"streamcell ({'|'.join(COMMANDS)})\b([^\n`]*)", text):
        assert set(FLAG.findall(rest.partition("#")[0])) <= known[command], (command, rest)
    spans = re.findall(r"`(--[^`\n]+)`", text)
    used = {flag for span in spans for flag in FLAG.findall(span)}
    assert used - FOREIGN <= set().union(*known.values())


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")

    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, part = link.partition("#")
        target = page.parent / file if file else page
        if target in MADE:
            continue
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert part in map(anchor, headings), link


@pages
def test_every_file_in_our_folders_is_there(page: Path) -> None:
    folders = "card|proto|models|export|service|client|study|cli|tests|examples|deploy|docs|benchmarks"
    named = re.findall(rf"`((?:{folders})/[\w./-]*\.(?:py|js|json|md|proto|yml))`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_s_tree_names_every_room_of_the_service() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2].split("```")[1]
    service = tree.partition("service/")[2].partition("\nclient/")[0]
    named = re.findall(r"^  ([a-z_]+)/", service, re.MULTILINE)
    there = [path.parent.name for path in (ROOT / "service").glob("*/__init__.py")]
    assert sorted(named) == sorted(there)


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's blocks of code in one of these languages, without the indentation of the list that they stand in."""
    found = re.findall(
        rf"^( *)```(?:{'|'.join(languages)})\b[^\n]*\n(.*?)^ *```", page.read_text(), re.M | re.S
    )
    return [textwrap.dedent(code) for _, code in found]


# What the variables of the blocks are.
FACES = {
    "client": (client.Client, client.AsyncClient),
    "session": (client.Session, client.AsyncSession),
    "pool": (client.Pool, client.AsyncPool),
}


@pages
def test_every_block_of_python_is_python_and_names_what_there_is(page: Path) -> None:
    for code in blocks(page, "python"):
        code = code.replace("…", "...")
        # In other blocks the names are those of Triton's client or of ONNX Runtime.
        ours = "tritonclient" not in page.read_text() and "InferenceSession" not in code
        compile(code, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamcell"):
                module = importlib.import_module(node.module or "")
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                faces = FACES.get(node.value.id, ()) if ours else ()
                assert not faces or any(hasattr(face, node.attr) for face in faces), (
                    node.value.id,
                    node.attr,
                )


@pages
def test_every_block_of_data_can_be_read(page: Path) -> None:
    for code in blocks(page, "toml"):
        tomllib.loads(code)
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "yaml", "yml"):
        list(yaml.safe_load_all(code))
