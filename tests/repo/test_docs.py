"""What the pages say that can be looked up: flags, files and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from streamcell.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# Of Triton's server and perf_analyzer.
FOREIGN = {
    "--model-control-mode", "--repository-poll-secs", "--exit-timeout-secs", "--input-data",
}  # fmt: skip

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
