"""A graph that can be read in one way needs no sidecar; every other one gets an error to begin a sidecar with."""

from __future__ import annotations

import time
import tomllib
import tracemalloc

import pytest

from streamcell.card import Signature, State, Tensor
from streamcell.service.graph.interface import GraphValue, read_interface
from streamcell.service.load_errors import DetectionError
from streamcell.service.repository.detect import detect
from streamcell.service.repository.sidecar import Sidecar
from streamcell.service.repository.sidecar_fit import new_axes, resolve
from streamcell.service.repository.sidecar_template import sidecar_template
from streamcell.service.repository.state_names import alike, state_pairs
from streamcell.service.repository.unbatched import find_unbatched
from tests.support.onnx_files import interface, parsed


def named(i: str, o: str) -> bool:
    given = interface(f'(float[b, 4] "{i}") => (float[b, 4] "{o}")')
    return state_pairs(given.inputs, given.outputs) == [(i, o)]


@pytest.mark.parametrize(
    ("i", "o"),
    [
        ("h", "h_out"), ("h", "h_next"), ("h", "h_n"), ("h", "hn"), ("h", "hN"), ("h0", "hn"), ("h_0", "h_n"),
        ("state", "stateN"), ("state", "new_state"), ("past_k", "present_k"), ("foo_prev", "foo_next"),
        ("past_key_values.0.key", "present.0.key"), ("h_in", "h_out"), ("h_in", "h"), ("cell_in_1", "cell_out_1"),
        ("hiddenState", "hiddenStateOut"), ("conv_cache", "conv_cache_out"), ("prev_h", "h"), ("h", "h'"),
        ("init_state", "state"), ("onnx::state.1", "onnx::state.1_next"),
    ],
)  # fmt: skip
def test_names_that_make_a_state(i: str, o: str) -> None:
    assert named(i, o)


@pytest.mark.parametrize(
    ("i", "o"),
    [
        ("x", "y"), ("mic_in", "mic_out"), ("x", "x_out"), ("input", "output"), ("h", "h"), ("h_1", "h_2_out"),
        ("in", "out"), ("past_k", "present_v"), ("h", "c_next"), ("0", "n"), ("::", "//"),
    ],
)  # fmt: skip
def test_names_that_make_none(i: str, o: str) -> None:
    assert not named(i, o)


def test_names_of_many_words_take_no_memory_by_their_square() -> None:
    name = "_".join(f"in_x{chr(97 + word % 26)}{chr(97 + word // 26)}" for word in range(600))
    ins, outs = ({each: GraphValue(each, "float32", ("b", 4))} for each in (name, f"{name}_out"))
    tracemalloc.start()
    try:
        assert state_pairs(ins, outs) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_pairs_among_many_names_are_found_soon() -> None:
    each = range(1000)
    ins = ", ".join(f"float[b, 4] k{n}_prev" for n in each)
    outs = ", ".join(f"float[b, 4] k{n}_next" for n in each)
    given = interface(f"({ins}) => ({outs})")
    began_s = time.thread_time()
    assert state_pairs(given.inputs, given.outputs) == [(f"k{n}_prev", f"k{n}_next") for n in each]
    assert time.thread_time() - began_s < 2  # 15 s if each name is read for each other


READABLE: dict[str, tuple[str, Signature]] = {
    "one step a run, states behind their layers": (
        "(float[batch, 8] x, float[2, batch, 4] h0, float[2, batch, 4] c0)"
        " => (float[batch, 3] y, float[2, batch, 4] hn, float[2, batch, 4] cn)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(
                State(input="h0", output="hn", dtype="float32", shape=(2, 4), batch_axis=1),
                State(input="c0", output="cn", dtype="float32", shape=(2, 4), batch_axis=1),
            ),
            layout="batch",
        ),
    ),
    "batch first, with time": (
        "(float[b, t, 8] x, float16[b, 4, 5] past_k) => (float[b, t, 3] y, float16[b, 4, 5] present_k)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="past_k", output="present_k", dtype="float16", shape=(4, 5)),),
        ),
    ),
    "time first, by the states' symbol": (
        "(float[s, n, 8] x, float[1, n, 4] h) => (float[s, n, 3] y, float[1, n, 4] h_out)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="h", output="h_out", dtype="float32", shape=(1, 4), batch_axis=1),),
            layout="time_batch",
        ),
    ),
    "unnamed batch": (
        "(float[?, 8] x, float[2, ?, 4] state) => (float[?, 3] y, float[2, ?, 4] stateN)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="state", output="stateN", dtype="float32", shape=(2, 4), batch_axis=1),),
            layout="batch",
        ),
    ),
    "exported for one session": (
        "(float[1, 1, 8] x, float[1, 2, 5] buf_in) => (float[1, 3] y, float[1, 2, 5] buf_out)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(1, 8)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            states=(State(input="buf_in", output="buf_out", dtype="float32", shape=(2, 5)),),
            layout="batch",
            max_batch=1,
        ),
    ),
    "stateless": (
        "(float[batch, 8] x, int64[batch] kind) => (float[batch, 3] y)",
        Signature(
            inputs=(
                Tensor(name="x", dtype="float32", step_shape=(8,)),
                Tensor(name="kind", dtype="int64", step_shape=()),
            ),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            layout="batch",
        ),
    ),
    "stateless, over time": (
        "(float[b, t, 8] x) => (float[b, t, 3] y)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
        ),
    ),
    "stateless, time first by name": (
        "(float[time, batch, 8] x) => (float[time, batch, 3] y)",
        Signature(
            inputs=(Tensor(name="x", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
            layout="time_batch",
        ),
    ),
    "weak names of ordinary signals": (
        "(float[b, 8] mic_in) => (float[b, 8] mic_out)",
        Signature(
            inputs=(Tensor(name="mic_in", dtype="float32", step_shape=(8,)),),
            outputs=(Tensor(name="mic_out", dtype="float32", step_shape=(8,)),),
            layout="batch",
        ),
    ),
}


@pytest.mark.parametrize("case", READABLE)
def test_graphs_that_can_be_read_in_one_way(case: str) -> None:
    text, wanted = READABLE[case]
    assert detect(interface(text)) == wanted


UNCLEAR = {
    "a constant": (
        "(float[b, s] input, float[2, b, 8] state, int64 sr) => (float[b, 1] output, float[2, b, 8] stateN)",
        "'sr' has no batch axis; is it a constant",
    ),
    "time without an output for each step": (
        "(float[b, samples] x, float[b, 4] h) => (float[b, 1] y, float[b, 4] hn)",
        "output 'y': expected .batch, time, ….*samples",
    ),
    "a state that fits two names": (
        "(float[b, 8] x, float[b, 4] h) => (float[b, 3] y, float[b, 4] h_next, float[b, 4] h_out)",
        "state input 'h' fits more than one name",
    ),
    "two states of one output": (
        "(float[b, 8] x, float[b, 4] h0, float[b, 4] h) => (float[b, 3] y, float[b, 4] hn)",
        "state output 'hn' fits more than one name",
    ),
    "a state's name with another dtype": (
        "(float[b, 8] x, float[b, 4] h) => (float[b, 3] y, float16[b, 4] hn)",
        "'h' and 'hn' are named like a state, but are",
    ),
    "a state that grows": (
        "(float[b, 8] x, float[b, past, 4] past_k) => (float[b, 3] y, float[b, total, 4] present_k)",
        r"state 'past_k'.*one size must be open.*axis 1 \(past\)",
    ),
    "a state without a batch axis": (
        "(float[b, 8] x, float[2, 4] h) => (float[b, 3] y, float[2, 4] hn)",
        "state 'h'.*one size must be open.*none",
    ),
    "states of different batches": (
        "(float[b, 8] x, float[b, 4] h, float[d, 4] c) => (float[b, 3] y, float[b, 4] hn, float[d, 4] cn)",
        "batch axes have different names",
    ),
    "nothing but states": (
        "(float[b, 8] h, float[b, 4] c) => (float[b, 8] hn, float[b, 4] cn)",
        "all inputs or all outputs are states",
    ),
    "a state without its output": (
        "(float[b, 8] x, float[b, 4] hidden) => (float[b, 3] y, float[b, 4] z)",
        "input 'hidden' is named like a state",
    ),
    "tensors of one shape": (
        "(float[b, 8] a, float[b, 4] q) => (float[b, 3] y, float[b, 4] z)",
        "input 'q' and output 'z' have one shape",
    ),
    "a default that sounds like a state": (
        "(float[b, 8] x, float[1, 4] h0) => (float[b, 3] y, float[1, 4] hn) <float[1, 4] h0 = {0, 0, 0, 0}>",
        "input 'h0' has a default value",
    ),
    "lengths": (
        "(float[b, t, 8] x, int32[b] lengths) => (float[b, t, 3] y)",
        "'lengths' may be each row's number of timesteps",
    ),
    "an open feature size": ("(float[b, t, f] x) => (float[b, t, 3] y)", r"input 'x', float32\[b, t, f\]: expected"),
    "an open output size": ("(float[b, 8] x) => (float[b, classes] y)", r"size of axis 1 \(classes\) is open"),
    "batch not first": ("(float[8, b] x) => (float[b, 3] y)", "input 'x'"),
    "a fixed batch of many": ("(float[5, 8] x) => (float[5, 3] y)", "the first of 'x'"),
    "a fixed output": ("(float[b, 8] x) => (float[1, 3] y)", "output 'y': expected"),
    "mixed layouts": ("(float[b, 8] x, float[b, t, 3] z) => (float[b, t, 3] y)", "differ in layout"),
    "a dtype that cannot cross": ("(string[b, 8] x) => (float[b, 3] y)", "'x' is string"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCLEAR)
def test_whatever_is_unclear_is_an_error_with_the_interface_and_a_draft_of_a_sidecar(case: str) -> None:
    text, why = UNCLEAR[case]
    given = interface(text)
    with pytest.raises(DetectionError, match=why) as caught:
        detect(given, sidecar_name="vad.toml")
    message = str(caught.value)
    for name, port in {**given.inputs, **given.outputs}.items():
        assert f"{name}: {port}" in message
    template = message.split("; a draft:")[1]
    assert "vad.toml" in message
    # What is left to fill in is marked; everything else is TOML already.
    assert filled_in(template, "1").inputs


def filled_in(template: str, value: str) -> Sidecar:
    """The sidecar with `value` for each `?` outside comments."""
    lines = [line.partition("#")[0].replace("?", value) for line in template.splitlines()]
    return Sidecar.model_validate(tomllib.loads("\n".join(lines)))


def template_of(text: str) -> str:
    return sidecar_template(interface(text))


DTLN = (
    "(float[1, 1, 512] input_4, float[1, 2, 128, 2] input_5)"
    " => (float[frames, k, 512] conv1d_3, float[batch, 2, 128, 2] tf_op_layer_stack_5)"
)


ALIKE = {
    "a batch of 1 against a symbol": (
        "(float[1, 8] x, float[1, 4] q) => (float[b, 3] y, float[b, 4] z)",
        "input 'q', float32.1, 4., and output 'z', float32.b, 4., may be a state",
    ),
    "a symbol against a batch of 1": (
        "(float[b, 8] x, float[2, b, 4] q) => (float[b, 3] y, float[2, 1, 4] z)",
        "input 'q', float32.2, b, 4., and output 'z', float32.2, 1, 4., may be a state",
    ),
    "two symbols": (
        "(float[b, 8] x, float[b, 4] q) => (float[b, 3] y, float[unk, 4] z)",
        "input 'q'.*output 'z'.*may be a state",
    ),
    "without a batch axis": (
        "(float[b, 8] x, float[453] q) => (float[b, 3] y, float[453] z)",
        "input 'q'.*output 'z'.*may be a state",
    ),
    "as in a filter of two stages": (DTLN, "input 'input_5'.*output 'tf_op_layer_stack_5'.*may be a state"),
}


@pytest.mark.parametrize("case", ALIKE)
def test_no_likely_state_is_taken_for_an_ordinary_input(case: str) -> None:
    text, why = ALIKE[case]
    with pytest.raises(DetectionError, match=why) as caught:
        detect(interface(text))
    inputs, outputs = list(interface(text).inputs), list(interface(text).outputs)
    said = filled_in(str(caught.value).split("; a draft:")[1], "1")
    assert [(state.input, state.output) for state in said.states] == [(inputs[1], outputs[1])]
    assert [each.name for each in said.inputs] == inputs[:1]
    assert [each.name for each in said.outputs] == outputs[:1]


@pytest.mark.parametrize(
    ("i", "o", "expected"),
    [
        ("[b, 4]", "[b, 4]", True),
        ("[1, 4]", "[b, 4]", True),
        ("[1, 1, 4]", "[b, t, 4]", True),
        ("[b, 4]", "[c, 4]", True),
        ("[4]", "[4]", True),
        ("[b]", "[b]", False),
        ("[1]", "[b]", False),
        ("[1, 1]", "[b, t]", False),
        ("[8, 4]", "[b, 4]", False),
        ("[b, 4]", "[b, 5]", False),
        ("[b, 4]", "[b, 4, 1]", False),
    ],
)
def test_shapes_that_are_alike(i: str, o: str, expected: bool) -> None:
    given = interface(f"(float{i} x) => (float{o} y)")
    assert alike(given.inputs["x"], given.outputs["y"]) == expected
    assert alike(given.outputs["y"], given.inputs["x"]) == expected


def test_everything_unclear_is_told_at_once() -> None:
    text = (
        "(float[b, t, 8] x, float[b, past, 4] past_k, float[b, 3] hidden, int64 sr, float[b, t, f] z)"
        " => (float[b, t, 3] y, float[b, total, 4] present_k, float[b, 1] once, string[b, t, 2] text)"
    )
    with pytest.raises(DetectionError) as caught:
        detect(interface(text))
    for why in (
        "6 problems:",
        "state 'past_k', float32[b, past, 4]: one size must be open",
        "input 'hidden' is named like a state, but no output is named to go with it",
        "'sr' has no batch axis; is it a constant",
        "'text' is string[b, t, 2]; expected a dtype of",
        "input 'z', float32[b, t, f]: expected [b, …], [b, time, …]",
        "output 'once': expected [batch, time, …] with the inputs' time axis t, found float32[b, 1]",
    ):
        assert why in str(caught.value)


BAKED = {
    "a version beside the answer": (
        "(float[b, 8] q, float[b, 4] h) => (float[b, 3] y, float[1] version, float[b, 4] hn)",
        {"outputs": ["y"], "max_batch": None},
    ),
    "eight rows": (
        "(float[b, 8] q, float[b, 4] h) => (float[8, 3] z, float[b, 3] y, float[b, 4] hn)",
        {"outputs": ["y"], "max_batch": None},
    ),
    "one row in the batch's place behind time": (
        "(float[t, b, 8] q, float[1, b, 4] h) => (float[t, b, 3] y, float[t, 1, 3] z, float[1, b, 4] hn)",
        {"outputs": ["y"], "max_batch": None, "layout": "time_batch"},
    ),
    "one answer for all timesteps": (
        "(float[b, t, 8] q, float[b, 4] h) => (float[b, t, 3] y, float[b, 1] once, float[b, 4] hn)",
        {"outputs": ["y"], "max_batch": None, "layout": "batch_time"},
    ),
    "a number without any axis": (
        "(float[b, 8] q, float[b, 4] h) => (float[b, 3] y, float loss, float[b, 4] hn)",
        {"outputs": ["y"], "max_batch": None},
    ),
    "one row in all outputs: one session a run": (
        "(float[b, 8] q, float[b, 4] h) => (float[1, 3] y, float[b, 4] hn)",
        {"outputs": ["y"], "max_batch": 1},
    ),
    "one row in a state: one session a run": (
        "(float[b, 8] q, float[2, b, 4] h) => (float[b, 3] y, float[2, 1, 4] hn)",
        {"outputs": ["y"], "max_batch": 1},
    ),
    "a batch that is one everywhere": (
        "(float[1, 8] q, float[1, 2, 4] h) => (float[1, 3] y, float[1, 2, 4] hn)",
        {"outputs": ["y"], "max_batch": None},
    ),
}


@pytest.mark.parametrize("case", BAKED)
def test_the_sidecar_to_begin_with_proposes_no_output_whose_rows_are_fixed(case: str) -> None:
    text, wanted = BAKED[case]
    said = filled_in(template_of(text), "1")
    assert [each.name for each in said.outputs] == wanted["outputs"]
    assert said.max_batch == wanted["max_batch"]
    assert said.layout == wanted.get("layout", "batch")
    assert [(state.input, state.output) for state in said.states] == [("h", "hn")]


def test_where_all_outputs_have_eight_rows_the_reader_is_left_to_say_which() -> None:
    template = template_of("(float[b, 8] q) => (float[8, 3] y)")
    assert '# left out: "y", float32[8, 3]: its batch axis is 8 for any batch' in template
    assert "outputs = [\n  # left out" in template
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(template)


def test_the_sidecar_to_begin_with_finds_the_layout_and_the_lengths() -> None:
    said = filled_in(template_of("(float[b, t, 8] x, int32[b] lengths) => (float[b, t, 3] y)"), "1")
    assert (said.layout, said.lengths) == ("batch_time", "lengths")
    assert [each.name for each in said.inputs] == ["x"]


def test_the_sidecar_to_begin_with_says_that_there_is_no_batch_axis() -> None:
    text = "(float[8] x, float[453] q) => (float[3] y, float[453] z)"
    with pytest.raises(DetectionError, match="may be a state") as caught:
        detect(interface(text), find_unbatched(interface(text)))
    assert '"x",  # float32[8]' in str(caught.value)
    said = filled_in(str(caught.value).split("; a draft:")[1], "1")
    signature, _ = resolve(said, interface(text).with_axes(new_axes(said), 1))
    assert signature.inputs == (Tensor(name="x", dtype="float32", step_shape=(8,)),)
    assert signature.states == (State(input="q", output="z", dtype="float32", shape=(453,)),)
    assert signature.max_batch == 1


def test_a_symbol_s_name_does_not_leave_its_comment() -> None:
    model = parsed("(float[b, 8] x) => (float[b, m] y) {}")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = 'm\nname = "mine"'
    said = filled_in(sidecar_template(read_interface(model.graph)), "1")
    assert said.name is None


def test_the_sidecar_in_the_error_serves_the_model_once_it_is_filled_in() -> None:
    text, _ = UNCLEAR["a constant"]
    with pytest.raises(DetectionError) as caught:
        detect(interface(text))
    template = str(caught.value).split("; a draft:")[1]
    said = filled_in(template.replace("= ?", "= 16000"), "512")
    signature, constants = resolve(said, interface(text))
    assert signature.inputs[0].step_shape == (512,)
    assert signature.states == (
        State(input="state", output="stateN", dtype="float32", shape=(2, 8), batch_axis=1),
    )
    assert constants["sr"] == 16000


def test_a_tensor_without_a_declared_shape_is_unclear() -> None:
    model = parsed("(float[b, 8] x) => (float[b, 3] y) { }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(DetectionError, match="'x' has no declared shape"):
        detect(read_interface(model.graph))
