"""Pipelines whose files make no model together are refused with what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from onnx import parser

from streamcell.service.load_errors import ModelLoadError, PipelineError, RepositoryError, SidecarError
from streamcell.service.repository.model_file import discover, open_model
from tests.support.onnx_files import parsed
from tests.support.pipelines import PLAIN, SIDE, STAGES, write

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
