"""Pipelines: several files are served as one model, with the states of all, or refused with what does not fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.load_errors import ModelLoadError, PipelineError, RepositoryError, SidecarError
from streamcell.service.repository.model_file import discover, open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed, save

Arrays = dict[str, np.ndarray]
# What a test calls a graph of the stage `file` with; gives the outputs by name.
Call = Callable[[str, Arrays], Arrays]


def recurrent(time: bool) -> onnx.ModelProto:
    """z [b, time, 4] or [b, 4], s [1, b, 5] → out [b, time, 5] or [b, 5], s_next; a GRU."""
    rng = np.random.default_rng(4)
    lead = ["b", "time"] if time else ["b"]
    value = helper.make_tensor_value_info
    turned = [helper.make_node("Transpose", ["z"], ["seq"], perm=[1, 0, 2])] if time else []
    if not time:
        turned = [helper.make_node("Unsqueeze", ["z", "zero"], ["seq"])]
    back = [helper.make_node("Squeeze", ["all", "one"], ["tb"])]
    back.append(
        helper.make_node("Transpose", ["tb"], ["out"], perm=[1, 0, 2])
        if time
        else helper.make_node("Squeeze", ["tb", "zero"], ["out"])
    )
    made = helper.make_graph(
        [
            *turned,
            helper.make_node("GRU", ["seq", "W", "R", "", "", "s"], ["all", "s_next"], hidden_size=5),
            *back,
        ],
        "g",
        [value("z", TensorProto.FLOAT, [*lead, 4]), value("s", TensorProto.FLOAT, [1, "b", 5])],
        [value("out", TensorProto.FLOAT, [*lead, 5]), value("s_next", TensorProto.FLOAT, [1, "b", 5])],
        [
            numpy_helper.from_array(rng.standard_normal((1, 15, 4)).astype(np.float32), "W"),
            numpy_helper.from_array(rng.standard_normal((1, 15, 5)).astype(np.float32), "R"),
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(np.array([0]), "zero"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# As DTLN's two models: fixed sizes, a state in each; both call their values alike.
FIRST = """(float[1,1,4] input_2, float[1,2,4] input_3) => (float[1,1,4] output_1, float[1,2,4] output_2)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, float[4] w = {0.5, -0.5, 1, 2}> {
        newest = Slice(input_3, one, two, one)  all = Add(input_2, newest)  scaled = Mul(all, w)
        output_1 = Sigmoid(scaled)  output_2 = Concat<axis = 1>(newest, input_2)
    }"""
SECOND = """(float[1,1,4] input_4, float[1,2,4] input_5) => (float[1,1,4] output_3, float[1,2,4] output_4)
    <int64[1] one = {1}, float[4] w = {1, 2, 3, 4}> {
        mean = ReduceMean<axes = [1], keepdims = 1>(input_5)  all = Mul(input_4, w)  output_3 = Add(all, mean)
        output_4 = Add(input_5, input_4)
    }"""
# A body that reads an initializer, an input and a value from around it.
BRANCHES = """(float[b,time,4] x) => (float[b,time,4] y) <float[4] w = {0.1, 0.2, 0.3, 0.4}, float zero = {0}> {
        doubled = Add(x, x)  total = ReduceSum<keepdims = 0>(x)  loud = Greater(zero, zero)
        y = If (loud) <
            then_branch = a () => (float[b,time,4] p) { p = Identity(x) },
            else_branch = c () => (float[b,time,4] q) { q = Mul(doubled, w) }
        >
    }"""
WEIGHED = """(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h_next) <float[4] w = {W}> {
        h_next = Add(h, x)  scaled = Mul(h_next, w)  y = Tanh(scaled)
    }"""
JOIN = "(float[b,4] p, float[b,4] q, float[b,4] x) => (float[b,4] y) { m = Mul(p, q)  y = Sub(m, x) }"


def write(folder: Path, files: dict[str, onnx.ModelProto], toml: str, name: str = "pipe") -> Path:
    for file, model in files.items():
        save(model, folder / f"{file}.onnx")
    path = folder / f"{name}.toml"
    path.write_text(toml)
    return path


def two_in_a_row(folder: Path) -> None:
    files = {"dtln/model_1": parsed(FIRST), "dtln/model_2": parsed(SECOND, 13)}
    write(
        folder,
        files,
        """
        layout = "batch"
        inputs = ["first.input_2"]
        outputs = ["second.output_3"]
        [[stages]]
        file = "dtln/model_1.onnx"
        name = "first"
        [[stages]]
        file = "dtln/model_2.onnx"
        name = "second"
        wires = { input_4 = "first.output_1" }
        [[states]]
        input = "first.input_3"
        output = "first.output_2"
        batch_axis = 0
        [[states]]
        input = "second.input_5"
        output = "second.output_4"
        batch_axis = 0
        initial = 0.5
        """,
        "dtln",
    )


def two_in_a_row_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    first = call("dtln/model_1", {"input_2": x[None], "input_3": s.get("a", np.zeros((1, 2, 4), np.float32))})
    held = s.get("b", np.full((1, 2, 4), 0.5, np.float32))
    second = call("dtln/model_2", {"input_4": first["output_1"], "input_5": held})
    s["a"], s["b"] = first["output_2"], second["output_4"]
    return second["output_3"][0]


def features(folder: Path) -> None:
    files = {"extractor": parsed(BRANCHES, 11), "net": recurrent(time=True)}
    write(
        folder,
        files,
        """
        layout = "batch_time"
        inputs = ["extractor.x"]
        outputs = ["net.out", "extractor.y"]
        [[stages]]
        file = "net.onnx"
        wires = { z = "extractor.y" }
        [[stages]]
        file = "extractor.onnx"
        [[states]]
        input = "net.s"
        output = "net.s_next"
        """,
        "features",
    )


def features_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    y = call("extractor", {"x": x[None, None]})["y"]
    made = call("net", {"z": y, "s": s.get("s", np.zeros((1, 1, 5), np.float32))})
    s["s"] = made["s_next"]
    return made["out"][0, 0]


def two_readers(folder: Path) -> None:
    files = {
        "source": parsed(WEIGHED.replace("W", "1, 1, 1, 1")),
        "left": parsed(WEIGHED.replace("W", "1, 2, 3, 4")),
        "right": parsed(WEIGHED.replace("W", "-1, 0.5, 1, 2"), 15),
        "join": parsed(JOIN),
    }
    sides = "".join(
        f"""
        [[stages]]
        file = "{name}.onnx"
        wires = {{ x = "source.y" }}
        [[states]]
        input = "{name}.h"
        output = "{name}.h_next"
        """
        for name in ("left", "right")
    )
    write(
        folder,
        files,
        f"""
        layout = "batch"
        inputs = ["frame"]
        outputs = ["join.y"]
        [[stages]]
        file = "join.onnx"
        wires = {{ p = "left.y", q = "right.y", x = "frame" }}
        [[stages]]
        file = "source.onnx"
        wires = {{ x = "frame" }}
        {sides}
        [[states]]
        input = "source.h"
        output = "source.h_next"
        """,
        "readers",
    )


def two_readers_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    def weighed(name: str, given: np.ndarray) -> np.ndarray:
        made = call(name, {"x": given, "h": s.get(name, np.zeros((1, 4), np.float32))})
        s[name] = made["h_next"]
        return made["y"]

    y = weighed("source", x[None])
    joined = call("join", {"p": weighed("left", y), "q": weighed("right", y), "x": x[None]})
    return joined["y"][0]


def without_a_batch(folder: Path) -> None:
    text = """(float[4] x, float[5] h) => (float[4] y, float[5] h_next) {
        a = ReduceMean<keepdims = 0>(h)  y = Add(x, a)  b = ReduceMean<keepdims = 0>(x)  h_next = Add(h, b)
    }"""
    write(
        folder,
        {"parts/alone": parsed(text)},
        """
        layout = "batch"
        batch_axis = "none"
        inputs = ["a.x"]
        outputs = ["b.y"]
        [[stages]]
        file = "parts/alone.onnx"
        name = "a"
        [[stages]]
        file = "parts/alone.onnx"
        name = "b"
        wires = { x = "a.y" }
        [[states]]
        input = "a.h"
        output = "a.h_next"
        [[states]]
        input = "b.h"
        output = "b.h_next"
        """,
        "twice",
    )


def without_a_batch_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    for name in ("a", "b"):
        made = call("parts/alone", {"x": x, "h": s.get(name, np.zeros(5, np.float32))})
        x, s[name] = made["y"], made["h_next"]
    return x


Step = Callable[[Call, np.ndarray, Arrays], np.ndarray]
# Each: what writes it; a step by hand; the shape of a step.
PIPELINES: dict[str, tuple[Callable[[Path], None], Step, tuple[int, ...]]] = {
    "dtln": (two_in_a_row, two_in_a_row_step, (1, 4)),
    "features": (features, features_step, (4,)),
    "readers": (two_readers, two_readers_step, (4,)),
    "twice": (without_a_batch, without_a_batch_step, (4,)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for make, _, _ in PIPELINES.values():
        make(folder)
    return folder


def by_hand(folder: Path, name: str, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives for x [steps, …], the files run one after another as the pipeline says."""
    sessions: dict[str, ort.InferenceSession] = {}

    def call(file: str, feeds: Arrays) -> Arrays:
        session = sessions.get(file)
        if session is None:
            path = folder / f"{file}.onnx"
            session = sessions[file] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    states: Arrays = {}
    return np.stack([PIPELINES[name][1](call, step, states) for step in x])


@pytest.mark.conformance
def test_sixteen_sessions_get_what_the_files_give_one_after_another(
    folder: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, np.ndarray]],
) -> None:
    server = start_server(folder)
    rng = np.random.default_rng(2)
    x = {
        name: rng.standard_normal((16, 12, *shape)).astype(np.float32)
        for name, (_, _, shape) in PIPELINES.items()
    }
    with connect(server.target) as client:
        assert sorted(each.name for each in client.models()) == sorted(PIPELINES)
        got = interleaved(client, x, 5)
    for name, rows in x.items():
        expected = np.stack([by_hand(folder, name, row) for row in rows])
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_pipeline_is_proved_and_its_states_are_in_one_pool(folder: Path) -> None:
    files = {file.name: file for file in discover(folder)}
    states = {
        name: sum(state.session_bytes for state in file.signature.states) for name, file in files.items()
    }
    assert states == {"dtln": 64, "features": 20, "readers": 48, "twice": 40}
    for name in ("features", "readers"):
        model = load(files[name], Settings.load(models=folder, proof="full", max_sessions=20), Device())
        model.runner.stop()
        assert model.restrictions == ()
        assert model.engine.pool.slot_bytes == states[name]


def test_a_version_may_be_a_pipeline(tmp_path: Path) -> None:
    two_readers(tmp_path / "net" / "3")
    (tmp_path / "net" / "3" / "readers.toml").rename(tmp_path / "net" / "3" / "model.toml")
    (file,) = discover(tmp_path)
    assert (file.name, file.version, file.path.name) == ("net", "3", "model.toml")


def test_weights_in_files_of_their_own(tmp_path: Path) -> None:
    two_readers(tmp_path)
    model = onnx.load(tmp_path / "left.onnx")
    (weights,) = model.graph.initializer
    weights.raw_data = numpy_helper.to_array(weights).tobytes()
    weights.ClearField("float_data")
    onnx.save(
        model, tmp_path / "left.onnx", save_as_external_data=True, location="left.bin", size_threshold=0
    )
    (file,) = discover(tmp_path)
    assert tmp_path / "left.bin" in file.watched
    (held,) = (each for each in file.load().graph.initializer if each.name == "left.w")
    np.testing.assert_array_equal(numpy_helper.to_array(held), [1, 2, 3, 4])


SIDE = 'layout = "batch"\ninputs = ["a.x"]\noutputs = ["b.y"]\n'
STAGES = '[[stages]]\nfile = "a.onnx"\n[[stages]]\nfile = "b.onnx"\nwires = { x = "a.y" }\n'
PLAIN = "(float[n,3] x) => (float[n,3] y) { y = Tanh(x) }"
OPERATORS = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : %d]>
    g (float[n,3] x) => (float[n,3] y) { y = com.microsoft.Gelu(x) }"""


def old(opset: int, node: str) -> str:
    return (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[n,3] x) => (float[n,3] y) {{ y = {node} }}'
    )


# Each: what stands in the place of PLAIN in a file; the stages; the error.
BROKEN: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "an output that is not there": (
        {},
        STAGES.replace("a.y", "a.z"),
        r"'b': wires\.x = 'a\.z': stage 'a' has no output 'z'; it has",
    ),
    "a stage that is not there": (
        {},
        STAGES.replace("a.y", "c.y"),
        r"there is no stage 'c'; expected STAGE\.OUTPUT with one of 'a', 'b'",
    ),
    "an input that is not there": (
        {},
        STAGES.replace("{ x =", "{ z ="),
        r"'b': wires\.z: the stage has no such input",
    ),
    "another dtype": (
        {"a": "(float[n,3] x) => (double[n,3] y) { y = Cast<to = 11>(x) }"},
        STAGES,
        r"'b': wires\.x = 'a\.y': float64\[n, 3\] does not fit into float32\[n, 3\]",
    ),
    "another size": (
        {"b": PLAIN.replace("3", "4")},
        STAGES,
        r"float32\[n, 3\] does not fit into float32\[n, 4\]",
    ),
    "another rank": (
        {"b": PLAIN.replace("n,3", "n,t,3")},
        STAGES,
        r"does not fit into float32\[n, t, 3\]",
    ),
    "one input that two stages take unlike": (
        {"b": PLAIN.replace("3", "4")},
        STAGES.replace('"a.y"', '"x"').replace('"a.onnx"\n', '"a.onnx"\nwires = { x = "x" }\n'),
        r"wires\.x = 'x': float32\[n, 3\] does not fit into float32\[n, 4\]",
    ),
    "a circle": (
        {},
        STAGES.replace('"a.onnx"\n', '"a.onnx"\nwires = { x = "b.y" }\n'),
        r"the wires go in a circle, (a → b → a|b → a → b); .* is a state",
    ),
    "outside": (
        {},
        STAGES.replace('"a.onnx"', '"../a.onnx"'),
        r"'a': file = '\.\./a\.onnx' is not in the folder of pipe\.toml",
    ),
    "absolute": (
        {},
        STAGES.replace('"a.onnx"', '"/etc/a.onnx"'),
        r"file = '/etc/a\.onnx' is not in the folder",
    ),
    "no path": ({}, STAGES.replace('"a.onnx"', '"a\\u0000"\nname = "a"'), r"is not in the folder"),
    "missing": ({}, STAGES.replace('"a.onnx"', '"c.onnx"\nname = "a"'), r"c\.onnx: cannot be read: No such"),
    "one name twice": (
        {},
        STAGES.replace('"a.onnx"', '"a.onnx"\nname = "b"'),
        r"'b' is the name of 2 stages; set name",
    ),
    "no name": ({}, STAGES.replace('"a.onnx"', '"a.onnx"\nname = "a.b"'), r"'a\.b' cannot be a stage's name"),
    "the server's name": (
        {},
        STAGES.replace('"a.onnx"', '"a.onnx"\nname = "streamcell"'),
        r"'streamcell' cannot be a stage's name",
    ),
    "no stage": ({}, "stages = []\n", r"stages: there is none"),
    "too many": ({}, 17 * STAGES, r"stages: .*at most 16"),
    "an unknown key": (
        {},
        STAGES.replace("wires", "wire"),
        r"stages\.1\.wire: unknown key; did you mean 'wires'",
    ),
    "no wire": ({}, STAGES.replace('wires = { x = "a.y" }\n', ""), r"nothing feeds .*b\.x"),
    "another version of operators": (
        {"a": OPERATORS % 1, "b": OPERATORS % 2},
        STAGES,
        r"'b' uses version 2 of 'com.microsoft', another stage 1; export both with the same",
    ),
    "an opset that cannot be converted": (
        {"a": old(5, "Crop(x)"), "b": old(17, "Tanh(x)")},
        STAGES,
        r"'a' uses opset 5, another stage 17, and onnx cannot convert it: .*; export all with one opset",
    ),
    "no model": ({"a": b"no model"}, STAGES, r"a\.onnx: not an ONNX file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_makes_no_graph_is_refused_in_words(tmp_path: Path, name: str) -> None:
    changed, stages, error = BROKEN[name]
    for file in ("a", "b"):
        given = changed.get(file, PLAIN)
        if isinstance(given, bytes):
            (tmp_path / f"{file}.onnx").write_bytes(given)
        else:
            model = parser.parse_model(given) if given.startswith("<") else parsed(given)
            onnx.save(model, tmp_path / f"{file}.onnx")
    (tmp_path / "pipe.toml").write_text(SIDE + stages)
    with pytest.raises(ModelLoadError, match=error) as caught:
        open_model(tmp_path / "pipe.toml", "pipe", root=tmp_path)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(RepositoryError) as report:
        discover(tmp_path)
    assert re.search(error, str(report.value))


def test_everything_that_is_wrong_with_the_wires_is_told_at_once(tmp_path: Path) -> None:
    toml = write(
        tmp_path,
        {"a": parsed(PLAIN), "b": parsed(PLAIN.replace("3", "4"))},
        SIDE + STAGES.replace("{ x", '{ z = "c.y", x'),
    )
    with pytest.raises(PipelineError, match=r"(?s)2 problems:.*no such input.*does not fit into"):
        open_model(toml, "pipe")


@pytest.mark.parametrize("what", ["the file", "the folder", "the TOML file"])
def test_a_link_that_leads_out_of_the_folder_of_models_is_refused(tmp_path: Path, what: str) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    stages = STAGES.replace("a.onnx", "in/a.onnx")
    toml = write(models, {"in/a": parsed(PLAIN), "b": parsed(PLAIN)}, SIDE + stages)
    elsewhere.mkdir()
    linked = {"the file": models / "in" / "a.onnx", "the folder": models / "in", "the TOML file": toml}[what]
    linked.rename(elsewhere / "moved")
    linked.symlink_to(elsewhere / "moved")
    with pytest.raises(RepositoryError, match="leads out of the folder of models"):
        discover(models)
    assert [file.name for file in discover(models, follow_links=True)] == ["pipe"]


def test_files_that_are_too_large_together_are_not_read(tmp_path: Path) -> None:
    toml = write(tmp_path, {"a": parsed(PLAIN), "b": parsed(PLAIN)}, SIDE + STAGES)
    for name in ("a", "b"):
        with (tmp_path / f"{name}.onnx").open("r+b") as file:
            file.truncate(2**30 + 1)
    with pytest.raises(PipelineError, match=r"at most 2147483647 bytes, these have 2147483650"):
        open_model(toml, "pipe")


def test_a_pipeline_beside_a_model_of_its_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": parsed(PLAIN), "b": parsed(PLAIN)}, SIDE + STAGES, "a")
    with pytest.raises(RepositoryError, match=r"a\.toml: .*stages: a pipeline has no \.onnx file beside it"):
        discover(tmp_path)


def test_a_toml_file_that_is_broken_is_told_if_it_speaks_of_stages(tmp_path: Path) -> None:
    write(tmp_path, {}, "[[stages]]\nfile = \n")
    (tmp_path / "other.toml").write_text("broken = \n")
    with pytest.raises(RepositoryError) as report:
        discover(tmp_path)
    (error,) = report.value.errors
    assert isinstance(error, SidecarError)
    assert error.path == tmp_path / "pipe.toml"


def test_a_changed_stage_is_noticed(
    tmp_path: Path,
    start_server: Callable[..., ServerProcess],
    eventually: Callable[[Callable[[], bool]], bool],
    frontends: int,
) -> None:
    toml = SIDE + STAGES.replace("a.onnx", "in/a.onnx")
    write(tmp_path, {"in/a": parsed(PLAIN), "b": parsed(PLAIN)}, toml)
    server = start_server(tmp_path, "--model-control", "poll", "--model-poll-s", "0.1")
    x = np.array([[0.1, -0.2, 0.3]], np.float32)

    def replace(model: onnx.ModelProto) -> None:
        onnx.save(model, tmp_path / ".coming")
        (tmp_path / ".coming").rename(tmp_path / "in" / "a.onnx")

    with connect(server.target) as client:

        def answers(expected: np.ndarray) -> Callable[[], bool]:
            return lambda: bool(np.allclose(client.predict("pipe", x), np.tanh(expected), atol=1e-6))

        assert answers(np.tanh(x))()
        replace(parsed(PLAIN.replace("Tanh(x)", "Neg(x)")))
        assert eventually(answers(-x))
        replace(parsed(PLAIN.replace("3", "4")))
        assert eventually(lambda: any(e["event"] == "model not loaded" for e in server.log))
        assert answers(-x)()
        replace(parsed(PLAIN.replace("Tanh(x)", "Abs(x)")))
        assert eventually(answers(np.abs(x)))


def test_what_a_stage_takes_from_the_step_before_of_another_is_a_state(tmp_path: Path) -> None:
    files = {
        "a": parsed(WEIGHED.replace("W", "1, 2, 3, 4")),
        "b": parsed("(float[b,4] x) => (float[b,4] y) { y = Neg(x) }"),
    }
    feedback = STAGES + '[[states]]\ninput = "a.h"\noutput = "b.y"\n'
    model = open_model(write(tmp_path, files, SIDE + feedback), "pipe")
    assert [(state.input, state.output) for state in model.signature.states] == [("a.h", "b.y")]


def test_a_stage_with_functions_of_its_own_is_merged(tmp_path: Path) -> None:
    called = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[n,3] x) => (float[n,3] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }"""
    toml = write(tmp_path, {"a": parser.parse_model(called), "b": parser.parse_model(called)}, SIDE + STAGES)
    merged = open_model(toml, "pipe").load()
    session = ort.InferenceSession(merged.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(3, dtype=np.float32)[None]
    np.testing.assert_array_equal(session.run(["b.y"], {"a.x": x})[0], 4 * x)


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "foreign-models.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"### Pipelines of several files.*?```toml\n(.*?)```", page, re.DOTALL)
    files = {"denoiser/model_1": parsed(FIRST), "denoiser/model_2": parsed(SECOND)}
    write(tmp_path, files, toml, "denoiser")
    (file,) = discover(tmp_path)
    assert file.name == "denoiser"
    assert len(file.signature.states) == 2


def test_the_states_of_files_with_cards_need_not_be_said(
    tmp_path: Path, models_dir: Path, modules: dict[str, torch.nn.Module]
) -> None:
    toml = """
        layout = "batch_time"
        inputs = ["x"]
        outputs = ["deep.y"]
        lengths = "lengths"
        [[stages]]
        file = "tcn.onnx"
        wires = { x = "x", lengths = "lengths" }
        [[stages]]
        file = "widen.onnx"
        wires = { x = "tcn.y" }
        [[stages]]
        file = "deep.onnx"
        wires = { x = "widen.y", lengths = "lengths" }
        """
    widen = """(float[b,time,2] x) => (float[b,time,3] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}> {
            first = Slice(x, zero, one, two)  y = Concat<axis = 2>(x, first)
        }"""
    path = write(tmp_path, {"widen": parsed(widen)}, toml)
    for name in ("tcn", "deep"):
        shutil.copy(models_dir / f"{name}.onnx", tmp_path)
    model = load(
        open_model(path, "pipe"), Settings.load(models=tmp_path, proof="full", max_sessions=20), Device()
    )
    model.runner.stop()
    assert model.restrictions == ()
    cards = {name: open_model(models_dir / f"{name}.onnx", name) for name in ("tcn", "deep")}
    assert [each.input for each in model.file.signature.states] == [
        f"{name}.{state.input}" for name, file in cards.items() for state in file.signature.states
    ]
    x = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        between = modules["tcn"](x)
        between = between[0] if isinstance(between, tuple) else between
        expected = modules["deep"](torch.cat([between, between[..., :1]], 2))[0][0].numpy()
    got, engine = [], model.engine
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        staged = engine.stage(1, end - begin)
        staged.values[0][:1, : end - begin] = x[:, begin:end]
        staged.read[:1] = engine.pool.first_slot if begin else 0
        staged.write[:1, 0] = engine.pool.first_slot
        staged.lengths[:1] = end - begin
        engine.run(staged)
        got.append(np.copy(staged.values[1][0, : end - begin]))
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-4, atol=1e-5)
