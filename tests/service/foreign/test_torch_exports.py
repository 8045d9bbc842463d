"""nn.LSTM and nn.GRU as people export them themselves, by TorchScript and by torch.export: with at most a sidecar they
are served, many sessions interleaved, and answer as PyTorch does."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from tests.support.onnx_files import parsed, save

SIZE, HIDDEN, ROWS, TIME = 5, 8, 6, 17
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
# By TorchScript with open axes; by torch.export with an open batch and one timestep; the same with nothing open and
# the names that the exporter makes up, which needs a sidecar.
NAMES = [
    *(
        f"{how}_{kind}_{order}"
        for how in ("script", "dynamo")
        for kind in KINDS
        for order in ("batch", "time")
    ),
    "fixed_lstm",
]
DYNAMIC = torch.export.Dim.DYNAMIC


def made(name: str) -> nn.RNNBase:
    _, kind, *order = name.split("_")
    torch.manual_seed(len(kind))
    return KINDS[kind](SIZE, HIDDEN, batch_first=order == ["batch"]).eval()


def export(name: str, path: Path) -> None:
    """As the documentation of torch.onnx.export has it."""
    module, batch = made(name), 1 if name == "fixed_lstm" else 2
    time = 4 if name.startswith("script") else 1
    x = torch.randn(batch, time, SIZE) if module.batch_first else torch.randn(time, batch, SIZE)
    states = ["h0", "c0"] if isinstance(module, nn.LSTM) else ["h0"]
    given = [torch.zeros(1, batch, HIDDEN) for _ in states]
    arguments = (x, tuple(given) if len(given) > 1 else given[0])
    names: dict[str, Any] = {
        "input_names": ["input", *states],
        "output_names": ["output", *(f"{state[0]}n" for state in states)],
    }
    if name == "fixed_lstm":
        torch.onnx.export(module, arguments, path, dynamo=True, verbose=False)
    elif name.startswith("dynamo"):
        open_states = [{1: DYNAMIC} for _ in states]
        open_axes = (
            {0 if module.batch_first else 1: DYNAMIC},
            tuple(open_states) if len(given) > 1 else open_states[0],
        )
        torch.onnx.export(
            module, arguments, path, dynamo=True, verbose=False, dynamic_shapes=open_axes, **names
        )
    else:
        axes = {0: "batch", 1: "time"} if module.batch_first else {0: "time", 1: "batch"}
        rows = {name: {1: "batch"} for name in (*states, *names["output_names"][1:])}
        torch.onnx.export(
            module,
            arguments,
            path,
            dynamo=False,
            dynamic_axes={"input": axes, "output": axes, **rows},
            **names,
        )


@pytest.fixture(scope="module")
def sidecar() -> str:
    """The one that the documentation shows for a file of torch.export without names."""
    page = (Path(__file__).parents[3] / "docs" / "foreign-models.md").read_text(encoding="utf-8")
    found = re.search(r"`hx_0`.*?```toml\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sidecar: str) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in NAMES:
            export(name, folder / f"{name}.onnx")
    (folder / "fixed_lstm.toml").write_text(sidecar, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, start_server: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    return start_server(folder)


def test_what_torch_exports_itself_streams_as_it_runs_in_pytorch(
    server: ServerProcess, interleaved: Callable[..., dict[str, Any]]
) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((ROWS, TIME, SIZE), np.float32) for name in NAMES}
    with connect(server.target) as client:
        # torch.export writes a fixed timestep of a batch-first module into the step.
        step = {name: tuple(client.model(name).inputs[0].step_shape) for name in NAMES}
        sent = {name: x.reshape(ROWS, TIME, *step[name]) for name, x in given.items()}
        answers = interleaved(client, sent, seed=3)
        assert {name: client.model(name).restrictions for name in NAMES} == dict.fromkeys(NAMES, ())
    assert [name for name in NAMES if step[name] != (SIZE,)] == ["dynamo_lstm_batch", "dynamo_gru_batch"]
    for name, x in given.items():
        module, steps = made(name), torch.from_numpy(x)
        with torch.no_grad():
            y = module(steps)[0] if module.batch_first else module(steps.transpose(0, 1))[0].transpose(0, 1)
        np.testing.assert_allclose(answers[name].reshape(y.shape), y.numpy(), atol=1e-5, err_msg=name)


def test_the_exporters_write_what_this_is_about(folder: Path) -> None:
    def interface(name: str) -> dict[str, list[int | str]]:
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        return {
            value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }

    assert interface("script_lstm_batch")["input"] == ["batch", "time", SIZE]
    time, batch, size = interface("dynamo_gru_time")["input"]
    assert (time, size, isinstance(batch, str)) == (1, SIZE, True)
    assert list(interface("fixed_lstm")) == ["input", "hx_0", "hx_1", "getitem", "getitem_1", "getitem_2"]


PASSES = "{ y = Add(x, x)  hn = Add(h0, h0) }"
SIDECAR = 'inputs = ["x"]\noutputs = ["y"]\n[[states]]\ninput = "h0"\noutput = "hn"\n'


@pytest.mark.parametrize(
    ("interface", "said", "shape"),
    [
        ("(float[1,b,3] x, float[1,b,2] h0) => (float[1,b,3] y, float[1,b,2] hn)", None, (3,)),
        ("(float[b,1,3] x, float[1,b,2] h0) => (float[b,1,3] y, float[1,b,2] hn)", None, (1, 3)),
        ("(float[b,1,3] x, float[1,b,2] h0) => (float[b,1,3] y, float[1,b,2] hn)", "time_axis = 1\n", (3,)),
        ("(float[1,b,3] x, float[1,b,2] h0) => (float[1,b,3] y, float[1,b,2] hn)", "time_axis = 0\n", (3,)),
        (
            "(float[1,b,3] x, float[1,b,2] h0) => (float[1,b,3] y, float[1,b,2] hn)",
            'layout = "time_batch"\n',
            (3,),
        ),
        ("(float[1,b] x, float[1,b,2] h0) => (float[1,b] y, float[1,b,2] hn)", None, ()),
        # As torch.export writes a layer whose time axis is open, if it does: the output has the example's.
        ("(float[b,t,3] x, float[1,b,2] h0) => (float[b,4,3] y, float[1,b,2] hn)", None, None),
        # The first axis of one of them is not 1: no time axis of one timestep.
        ("(float[2,b,3] x, float[1,b,2] h0) => (float[2,b,3] y, float[1,b,2] hn)", None, None),
        ("(float[2,b,3] x, float[1,b,2] h0) => (float[2,b,3] y, float[1,b,2] hn)", "time_axis = 0\n", None),
    ],
)
def test_a_time_axis_of_one_timestep_is_no_axis_of_the_step(
    interface: str, said: str | None, shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    sidecar = None if said is None else said + SIDECAR
    path = save(parsed(f"{interface} {PASSES}"), tmp_path / "m.onnx", sidecar)
    if shape is None:
        with pytest.raises(
            ModelLoadError, match=r"\[time, b, …\]|fixes the time axis at 2|wrote down the 4 timesteps"
        ):
            open_model(path, "m")
        return
    file = open_model(path, "m")
    assert (file.signature.layout, file.signature.inputs[0].step_shape) == ("batch", shape)
    assert file.signature.outputs[0].step_shape == shape
    session = ort.InferenceSession(file.load().SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(4 * np.prod(shape, dtype=int), dtype=np.float32).reshape(4, *shape)
    y, _ = session.run(["y", "hn"], {"x": x, "h0": np.zeros((1, 4, 2), np.float32)})
    np.testing.assert_array_equal(y, 2 * x)
