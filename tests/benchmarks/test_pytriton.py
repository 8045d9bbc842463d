"""The peer's model file against the ONNX file it runs. Triton is stood in for; `make bench PEER=pytriton` runs it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.benchmarks.__main__ import parse
from streamcell.benchmarks.targets import pytriton
from streamcell.service.repository.model_file import open_model

START, END = 1, 2


class Request(SimpleNamespace):
    """What the back end gives of a request: a correlation id, flags and one tensor."""

    def correlation_id(self) -> int:
        return int(self.sequence)

    def flags(self) -> int:
        return int(self.flag)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.get_input_tensor_by_name = lambda request, name: SimpleNamespace(as_numpy=lambda: request.x)
    utils.Tensor = lambda name, value: value
    utils.InferenceResponse = lambda tensors: tensors[0]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_peers_model_keeps_states_by_correlation_id(
    kind: str, models_dir: Path, modules: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    file = open_model(models_dir / f"{kind}.onnx", kind)
    pytriton.write_repository(tmp_path, file)
    text = (tmp_path / kind / "config.pbtxt").read_text()
    assert 'input [{ name: "x", data_type: TYPE_FP32, dims: [3] }]' in text
    about = text.partition("string_value: ")[2].partition(" }")[0]
    spec = importlib.util.spec_from_file_location("peer_model", tmp_path / kind / "1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json.dumps({"parameters": {"signature": {"string_value": json.loads(about)}}})
    model.initialize({"model_config": config})
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 3)).astype(np.float32)
    for again in range(2):  # the second time with rows that ended sequences have left behind
        outputs = np.zeros((3, 5, 2), np.float32)
        for step in range(5):
            order = np.random.default_rng(step).permutation(3).tolist()
            flag = START * (step == 0) + END * (step == 4)
            asked = [Request(sequence=10 + n, flag=flag, x=x[again, n, step][None]) for n in order]
            for n, y in zip(order, model.execute(asked), strict=True):
                outputs[n, step] = y[0]
        with torch.no_grad():
            want = modules[kind](torch.from_numpy(x[again]))[0].numpy()
        np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-5)


def test_the_peer_can_be_asked_for() -> None:
    assert parse(["--peer", "pytriton"]).peers == {"pytriton": pytriton.pytriton}


def test_what_pip_says_is_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytriton, "VERSION", "0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(pytriton.PeerError, match="numpy<2"):
        pytriton.environment(tmp_path)
