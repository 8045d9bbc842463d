"""The documentation as a site: it builds without a warning, and its pages made from code name everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs mkdocs-material: pip install 'streamcell[dev]'")

from streamcell.proto.streamcell.v1 import streamcell_pb2 as pb
from streamcell.service.settings import Settings

ROOT = Path(__file__).parents[2]


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(target),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", target)
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_in_the_site_and_asks_no_other_host_for_anything(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"settings", "commands", "protocol"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(https?://[^\">\s]+)", page.read_text()
        )
        assert loaded == [], page.name


def test_the_page_of_settings_names_every_setting(site: Path) -> None:
    text = (site / "settings.html").read_text()
    assert [name for name in Settings.model_fields if f"<code>{name}</code>" not in text] == []


def test_the_page_of_the_protocol_has_every_message_field_and_call(site: Path) -> None:
    text = (site / "protocol.html").read_text()
    messages = pb.DESCRIPTOR.message_types_by_name.values()
    members = [field.name for each in messages for field in each.fields]
    members += [value.name for each in pb.DESCRIPTOR.enum_types_by_name.values() for value in each.values]
    members += [call.name for each in pb.DESCRIPTOR.services_by_name.values() for call in each.methods]
    assert [name for name in members if f"<code>{name}</code>" not in text] == []
    assert [each.name for each in messages if f'id="{each.name.lower()}"' not in text] == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("[a](missing.md)", "missing.md"), ("[a](index.md#gone)", "gone")],
    ids=["page", "anchor"],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n{text}\n")
    kept = re.search(r"^validation:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert kept
    (tmp_path / "mkdocs.yml").write_text(f"site_name: a\ntheme: {{name: material, font: false}}\n{kept[0]}")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr
