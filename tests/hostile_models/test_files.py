"""Files that are no models, links that lead out, cards that lie: a report with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.service.load_errors import MOST_TEXT, RepositoryError
from streamcell.service.repository.model_file import discover
from tests.support.hostile_files import ADD, OPENED, SIDECAR, STATE, Make
from tests.support.onnx_files import parsed, save


@pytest.mark.parametrize(("make", "name", "text"), OPENED.values(), ids=OPENED.keys())
def test_what_cannot_be_opened_is_reported(make: Make, name: str, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    save(parsed(ADD), folder / "good.onnx", SIDECAR + STATE)
    make(folder)
    with pytest.raises(RepositoryError) as caught:
        discover(folder)
    (error,) = caught.value.errors
    assert str(error).startswith(f"{folder}/"), error
    assert f"{name}: " in str(error)
    assert text in str(error)
    said = str(caught.value)
    assert said.startswith(f"{folder}: 1 model cannot be served\n- {error}")
    assert len(said.encode()) < 2 * MOST_TEXT


def test_links_within_the_folder_work_as_kubernetes_makes_them(tmp_path: Path) -> None:
    """A volume's files are links to links into a folder of dots; the folder itself may be a link too."""
    mounted = tmp_path / "volume"
    save(parsed(ADD), mounted / "..2026_01" / "m.onnx", SIDECAR + STATE)
    (mounted / "..data").symlink_to("..2026_01")
    for name in ("m.onnx", "m.toml"):
        (mounted / name).symlink_to(f"..data/{name}")
    (tmp_path / "models").symlink_to(mounted)
    (file,) = discover(tmp_path / "models")
    assert file.load().graph.node


def test_links_out_of_the_folder_are_followed_where_that_is_allowed(tmp_path: Path) -> None:
    save(parsed(ADD), tmp_path / "elsewhere" / "m.onnx", SIDECAR + STATE)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("m.onnx", "m.toml"):
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    save(parsed(ADD), tmp_path / "elsewhere" / "n" / "1" / "model.onnx", SIDECAR + STATE)
    (folder / "n").symlink_to(tmp_path / "elsewhere" / "n")
    assert [file.name for file in discover(folder, follow_links=True)] == ["m", "n"]
