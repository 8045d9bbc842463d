"""Models that open and cannot be loaded: a report with the file's name, the cause and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load_all
from streamcell.service.load_errors import MOST_TEXT, ModelLoadError, RepositoryError
from streamcell.service.repository.model_file import discover
from streamcell.service.settings import Settings
from tests.support.hostile_files import ADD, LOADED, SIDECAR, STATE, Make
from tests.support.onnx_files import parsed, save


@pytest.mark.parametrize(("make", "text"), LOADED.values(), ids=LOADED.keys())
def test_what_cannot_be_loaded_is_reported(make: Make, text: str, tmp_path: Path) -> None:
    save(parsed(ADD), tmp_path / "good.onnx", SIDECAR + STATE)
    make(tmp_path)
    with pytest.raises(RepositoryError) as caught:
        load_all(discover(tmp_path), Settings.load(models=tmp_path), Device(), lambda: None)
    (error,) = caught.value.errors
    assert str(error).startswith(f"{tmp_path / 'bad.onnx'}: ")
    assert text in str(error)
    assert len(str(error)) < 2 * MOST_TEXT


def test_too_little_memory_is_told_with_numbers_and_what_to_set(tmp_path: Path) -> None:
    wide = ADD.replace("3]", "1000000]")
    save(parsed(wide), tmp_path / "wide.onnx", SIDECAR + STATE)
    settings = Settings.load(models=tmp_path, max_sessions=2_000_000, max_batch=2)
    with pytest.raises(
        ModelLoadError,
        match=r"wide\.onnx: too little memory: .* are available, and the model would take 7\.\d+ TiB: 7\.\d+ TiB for "
        r"the states of 2000000 sessions, .* set --max-sessions to \d+ or less, or give the server more memory",
    ):
        load_all(discover(tmp_path), settings, Device(), lambda: None)
