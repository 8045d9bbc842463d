"""A sidecar says what a graph's inputs, outputs and states are; every mistake in it names the key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streamcell.card import Generation, Signature, State, Tensor
from streamcell.service.graph.interface import check_signature
from streamcell.service.load_errors import SidecarError, SignatureError
from streamcell.service.repository.sidecar import Sidecar, SidecarInput, SidecarState, read_sidecar
from streamcell.service.repository.sidecar_fit import resolve
from tests.support.onnx_files import interface

VAD = (
    "(float[batch, samples] input, float[2, batch, 128] state, int64 sr)"
    " => (float[batch, 1] output, float[2, batch, 128] stateN)"
)
VAD_SIDECAR = """
layout = "batch"
inputs = [{ name = "input", step_shape = [512], context = 64 }]
outputs = ["output"]

[constants]
sr = 16000

[[states]]
input = "state"
output = "stateN"
"""


Write = Callable[[str], Sidecar]


@pytest.fixture
def sidecar(tmp_path: Path) -> Write:
    def write(text: str) -> Sidecar:
        path = tmp_path / "model.toml"
        path.write_text(text, encoding="utf-8")
        return read_sidecar(path)

    return write


def test_a_voice_detector_with_a_constant_and_a_step_of_samples(sidecar: Write) -> None:
    signature, constants = resolve(sidecar(VAD_SIDECAR), interface(VAD))
    assert signature == Signature(
        inputs=(Tensor(name="input", dtype="float32", step_shape=(512,)),),
        outputs=(Tensor(name="output", dtype="float32", step_shape=(1,)),),
        states=(State(input="state", output="stateN", dtype="float32", shape=(2, 128), batch_axis=1),),
        layout="batch",
    )
    assert constants["sr"].dtype == np.int64
    assert constants["sr"].shape == ()
    assert constants["sr"] == 16000


def test_the_example_in_the_documentation_is_valid(sidecar: Write) -> None:
    page = (Path(__file__).parents[3] / "docs" / "foreign-models.md").read_text(encoding="utf-8")
    example, *_, generation = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert sidecar(example) == sidecar(VAD_SIDECAR)
    given = sidecar(
        'layout = "batch"\ninputs = [{ name = "token", step_shape = [] }]\noutputs = ["logits"]\n'
        + generation
    )
    graph = interface("(int64[b] token, float[b, 9] h) => (float[b, 5000] logits, float[b, 9] h_next)")
    resolve(given, graph)
    assert given.generation == Generation(
        output="logits", input="token", head="categorical", encoding="index", stop=0
    )
    aliases = [field.alias or key for key, field in SidecarInput.model_fields.items()]
    for key in (*Sidecar.model_fields, *aliases, *SidecarState.model_fields, *Generation.model_fields):
        assert key in page, f"{key} is not documented"


def test_an_input_without_a_batch_axis_is_left_to_the_check_of_the_signature(sidecar: Write) -> None:
    given = sidecar('layout = "batch"\ninputs = [{ name = "x", step_shape = [2] }]\noutputs = ["y"]')
    graph = interface("(float x) => (float[b, 2] y)")
    signature, constants = resolve(given, graph)
    with pytest.raises(SignatureError, match=r"expected \[batch, 2\]"):
        check_signature(graph, signature, constants)


def test_what_the_graph_leaves_open_may_be_said(sidecar: Write) -> None:
    text = "(float[b,t,f] x, float[l,b,u] h, int32[b] n) => (float[b,t,g] y, float[l,b,u] h_out)"
    given = sidecar(
        """
        time_axis = 1
        inputs = [{ name = "x", step_shape = [3], dtype = "float32" }]
        outputs = [{ name = "y", step_shape = [2], distribution = "categorical_logits" }]
        lengths = "n"
        max_batch = 16
        [[states]]
        input = "h"
        output = "h_out"
        batch_axis = 1
        shape = [1, 2]
        initial = [0.5, 1.5]
        """
    )
    signature, constants = resolve(given, interface(text))
    assert constants == {}
    assert signature.layout == "batch_time"
    assert (signature.lengths, signature.max_batch) == ("n", 16)
    assert signature.inputs[0].step_shape == (3,)
    assert signature.outputs[0].distribution == "categorical_logits"
    assert signature.states[0].shape == (1, 2)
    assert signature.states[0].initial == (0.5, 1.5)


@pytest.mark.parametrize(
    ("said", "layout"),
    [
        ('layout = "time_batch"', "time_batch"),
        ("time_axis = 0", "time_batch"),
        ("time_axis = 1", "batch_time"),
        ('time_axis = "none"', "batch"),
    ],
)
def test_the_layout_can_be_said_in_two_ways(said: str, layout: str, sidecar: Write) -> None:
    assert sidecar(f'{said}\ninputs = ["x"]\noutputs = ["y"]').tensor_layout == layout


@pytest.mark.parametrize(("said", "bound"), [("", 1), ("max_batch = 1", 1), ('max_batch = "any"', None)])
def test_a_batch_size_in_the_graph_holds_unless_it_is_only_the_examples(
    said: str, bound: int | None, sidecar: Write
) -> None:
    given = sidecar(f'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n{said}')
    signature, _ = resolve(given, interface("(float[1, 4] x) => (float[1, 2] y)"))
    assert signature.max_batch == bound


@pytest.mark.parametrize(
    ("value", "declared", "wanted"),
    [
        ("3", "float k", np.array(3, np.float32)),
        ("3", "float[1] k", np.array([3], np.float32)),
        ("[[1, 2], [3, 4]]", "int32[2, 2] k", np.array([[1, 2], [3, 4]], np.int32)),
        ("true", "bool k", np.array(True)),
        ("1.5", "float16 k", np.array(1.5, np.float16)),
    ],
)
def test_constants_take_the_dtype_and_shape_of_the_graph(
    value: str, declared: str, wanted: np.ndarray, sidecar: Write
) -> None:
    given = sidecar(f'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n[constants]\nk = {value}')
    _, constants = resolve(given, interface(f"(float[b, 4] x, {declared}) => (float[b, 2] y)"))
    assert constants["k"].dtype == wanted.dtype
    np.testing.assert_array_equal(constants["k"], wanted, strict=True)


GOOD = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
BAD_FILES = {
    "no TOML": ("layout = ", "not valid TOML: Invalid value"),
    "many inputs": (GOOD.replace('"x"', '"x", ' * 1025), "inputs: .*at most 1024"),
    "no layout": ('inputs = ["x"]\noutputs = ["y"]', "give either layout"),
    "two layouts": (GOOD + "time_axis = 1", "give either layout"),
    "a layout nobody knows": (GOOD.replace('"batch"', '"batched"'), "layout: .*'batch_time'.*got 'batched'"),
    "no inputs": ('layout = "batch"\noutputs = ["y"]', "inputs: Field required"),
    "no names in inputs": (GOOD.replace('["x"]', "[]"), "inputs: .*at least 1"),
    "inputs is a text": (GOOD.replace('["x"]', '"x"'), "inputs: .*got 'x'"),
    "unknown key": (GOOD + 'length = "n"', "length: unknown key; did you mean 'lengths'"),
    "unknown key of a state": (
        GOOD + '[[states]]\ninput = "h"\noutput = "k"\nbatchaxis = 1',
        r"states\.0\.batchaxis: unknown key; did you mean 'batch_axis'",
    ),
    "a state without output": (GOOD + '[[states]]\ninput = "h"', r"states\.0\.output: Field required"),
    "an axis that is no number": (
        GOOD + '[[states]]\ninput = "h"\noutput = "k"\nbatch_axis = "first"',
        r"states\.0\.batch_axis: .*integer.*got 'first'",
    ),
    "an initial value that is no number": (
        GOOD + '[[states]]\ninput = "h"\noutput = "k"\ninitial = "zero"',
        r"states\.0\.initial: .*number.*got 'zero'",
    ),
    "a text as constant": (GOOD + '[constants]\nk = "a"', r"constants\.k: .*got 'a'"),
    "an encoding that the head has not": (
        GOOD + '[generation]\noutput = "y"\ninput = "x"\nhead = "real"\nencoding = "index"',
        "generation: a real head goes in as value, not as index",
    ),
    "unknown key of generation": (
        GOOD + '[generation]\noutput = "y"\ninput = "x"\nhead = "real"\nhalt = 1',
        r"generation\.halt: unknown key",
    ),
    "a negative bound": (GOOD + "max_batch = -1", "max_batch: .*greater than or equal to 1.*got -1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_naming_file_and_key(case: str, sidecar: Write) -> None:
    text, message = BAD_FILES[case]
    with pytest.raises(SidecarError, match=message) as caught:
        sidecar(text)
    assert caught.value.path is not None
    assert "model.toml: " in str(caught.value)


ALL_AT_ONCE = {
    "keys": (
        'time-axis = 1\ninput = ["x"]\noutputs = 3\n[[states]]\ninput = "h"\nout = "k"\nhead = "real"',
        [
            "time-axis: unknown key; did you mean 'time_axis'?",
            "input: unknown key; did you mean 'inputs'?",
            "inputs: Field required",
            "outputs: Input should be a valid tuple, got 3",
            "give either layout",
            "states.0.output: Field required",
            "states.0.out: unknown key; did you mean 'output'?",
            "states.0.head: unknown key; it belongs to a table of 'generation'",
        ],
    ),
    "a key that resembles none": (
        GOOD + '[[states]]\ninput = "h"\noutput = "k"\nzoom = 1',
        ["states.0.zoom: unknown key; expected one of batch_axis, dtype, initial, input, output, shape"],
    ),
    "what is to be filled in": (
        GOOD.replace('["x"]', '[\n{ name = "x", step_shape = [?] },  # int64[?]\n]') + "[constants]\nk = ?  # int64[]",
        ["not valid TOML", "fill in the `?` in line 3, 7"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALL_AT_ONCE)
def test_everything_that_is_wrong_with_a_file_is_told_at_once(case: str, sidecar: Write) -> None:
    text, wanted = ALL_AT_ONCE[case]
    with pytest.raises(SidecarError) as caught:
        sidecar(text)
    for each in wanted:
        assert each in str(caught.value)


STATE = '[[states]]\ninput = "h"\noutput = "k"\n'
PLAIN = "(float[b, 4] x, float[2, b, 5] h, float[b] r) => (float[b, 2] y, float[2, b, 5] k)"
BAD_FITS = {
    "unknown input": (GOOD.replace('"x"', '"X"'), PLAIN, "inputs: 'X': the graph has no such name"),
    "unknown output": (
        GOOD.replace('"y"', '"yy"'),
        PLAIN,
        r"outputs: 'yy': the graph has no such name; did you mean 'y'\?",
    ),
    "unknown state": (GOOD + STATE.replace('"h"', '"hh"'), PLAIN, "states: 'hh': the graph has no such name"),
    "unknown state output": (
        GOOD + STATE.replace('"k"', '"q"'),
        PLAIN,
        "output 'q': the graph has no such name",
    ),
    "unknown constant": (GOOD + "[constants]\nq = 1", PLAIN, r"constants\.q: the graph has no such name"),
    "constant that does not fit": (
        GOOD + "[constants]\nr = 1.5",
        PLAIN.replace("float[b] r", "int64[b] r"),
        "1.5 does not fit int64",
    ),
    "constant of unequal lists": (
        GOOD + "[constants]\nr = [[1], [1, 2]]",
        PLAIN,
        "nested lists of equal lengths",
    ),
    "a flag for a number": (GOOD + "[constants]\nr = true", PLAIN, r"expected float32\[b\], got True"),
    "open step": (GOOD, PLAIN.replace("[b, 4] x", "[b, many] x"), r"axis 1 \(many\).*set step_shape"),
    "open state": (
        GOOD + STATE + "batch_axis = 1",
        PLAIN.replace("[2, b, 5] h", "[2, b, units] h"),
        r"axis 2 \(units\).*set shape",
    ),
    "open batch axis": (GOOD + STATE, PLAIN.replace("[2, b, 5] h", "[2, b, units] h"), "set batch_axis"),
    "axis outside": (GOOD + STATE + "batch_axis = 3", PLAIN, "batch_axis 3 is outside"),
    "too few axes": (
        GOOD.replace('"batch"', '"batch_time"'),
        PLAIN.replace("[b, 4] x", "[b] x"),
        "expected .batch, time, …",
    ),
    "initial of another size": (
        GOOD + STATE + "initial = [1.0, 2.0]",
        PLAIN,
        "2 initial values.*expected 10",
    ),
    "named twice": (GOOD + STATE.replace('"h"', '"x"') + "batch_axis = 0", PLAIN, "named more than once: x"),
    "a generation of another width": (
        GOOD + '[generation]\noutput = "y"\ninput = "x"\nhead = "bernoulli"',
        PLAIN,
        r"output 'y' \[2\] cannot be fed to input 'x' \[4\]",
    ),
    "a text tensor": (GOOD, PLAIN.replace("float[b, 4] x", "string[b, 4] x"), "inputs: 'x': dtype string"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_a_sidecar_that_does_not_fit_the_graph_is_refused_naming_the_key(case: str, sidecar: Write) -> None:
    text, graph, message = BAD_FITS[case]
    given = sidecar(text)
    with pytest.raises(SidecarError, match=message):
        resolve(given, interface(graph))


def test_everything_that_does_not_fit_the_graph_is_told_at_once(sidecar: Write) -> None:
    given = sidecar(
        'layout = "batch"\ninputs = ["X"]\noutputs = ["yy", "w"]\n[constants]\nrate = 1.5\nnone = 1\n'
        '[[states]]\ninput = "h"\noutput = "kk"\n'
    )
    graph = "(float[b, 4] x, float[b, 5] h, int64 rate, float[b, 2] z) => (float[b, 2] y, float[b, m] w, float[b, 5] k)"
    with pytest.raises(SidecarError) as caught:
        resolve(given, interface(graph))
    for text in (
        "7 problems:",
        "inputs: 'X': the graph has no such name; did you mean 'x'?",
        "outputs: 'yy': the graph has no such name; did you mean 'y'?",
        "outputs: 'w': the graph leaves axis 1 (m) of float32[b, m] open; set step_shape",
        "states: 'h': output 'kk': the graph has no such name; did you mean 'k'?",
        "constants.rate: 1.5 does not fit int64",
        "constants.none: the graph has no such name",
        "nothing feeds these inputs: z: float32[b, 2]",
    ):
        assert text in str(caught.value)
    assert str(caught.value).count("the graph has\n") == 1


def test_a_report_does_not_grow_with_the_number_of_problems(sidecar: Write) -> None:
    given = sidecar(GOOD.replace('["x"]', str([f"q{place}" for place in range(1000)])))
    with pytest.raises(SidecarError, match=r"^more than 100 problems:\n") as caught:
        resolve(given, interface(PLAIN))
    assert len(caught.value.problems) == 101
    assert caught.value.problems[-1] == "… and more"


def test_many_unknown_names_are_told_soon(sidecar: Write) -> None:
    inputs = ", ".join(f"float[b, 4] layer{place}_hidden" for place in range(1000))
    given = sidecar(GOOD.replace('["x"]', str([f"lauer{place}_hidden" for place in range(1000)])))
    began_s = time.thread_time()
    with pytest.raises(SidecarError, match=r"'lauer0_hidden': .* did you mean 'layer0_hidden'"):
        resolve(given, interface(f"({inputs}) => (float[b, 2] y)"))
    assert time.thread_time() - began_s < 10  # two minutes if each name is compared with each


def test_a_name_given_many_times_is_told_soon() -> None:
    x = Tensor(name="x", dtype="float32")
    began_s = time.thread_time()
    with pytest.raises(ValidationError, match="named more than once: x"):
        Signature(inputs=(x,) * 100_000, outputs=(x,))
    assert time.thread_time() - began_s < 5  # half a minute if each name is counted anew


def test_everything_that_a_signature_gets_wrong_is_told_at_once() -> None:
    graph = interface("(float[b, 4] x, float[b, 5] h, float[b, 2] z) => (float[b, 2] y, float[b, 5] k)")
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
        outputs=(Tensor(name="y", dtype="float64", step_shape=(2,)),),
        states=(State(input="h", output="q", dtype="float32", shape=(5,)),),
        layout="batch",
    )
    with pytest.raises(SignatureError) as caught:
        check_signature(graph, signature, {"none": np.zeros(1)})
    for text in ("5 problems", "input 'x', axis 1", "output 'y': expected float64", "no state output 'q'",
                 "no constant 'none'", "nothing feeds these inputs: z"):  # fmt: skip
        assert text in str(caught.value)
