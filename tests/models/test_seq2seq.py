"""The encoder–decoder: the training form equals the streaming form, in PyTorch and as a graph, whatever the mix."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from streamcell.card import Generation
from streamcell.export import ExportError, export_model
from streamcell.models import ConfigError, Seq2Seq, ShapeError, build
from streamcell.models.architectures.seq2seq_decode import beam, greedy

SOURCES, CLASSES = 7, 5
TOKENS = SOURCES + CLASSES
# Cell, layers, stack.
KINDS = [
    ("lstm", 1, 0),
    ("lstm", 3, 0),
    ("gru", 1, 0),
    ("gru", 2, 0),
    ("lstm", 1, 3),
    ("lstm", 2, 12),
    ("gru", 2, 3),
]


def make(cell: str = "lstm", layers: int = 1, stack: int = 0, **more: Any) -> Seq2Seq:
    """A small model with every parameter away from its default."""
    torch.manual_seed(5)
    config = {"kind": "seq2seq", "input_size": TOKENS, "output_size": CLASSES, "hidden_size": 6}
    settings = {"cell": cell, "num_layers": layers, "embedding_size": 4, "stack": stack, **more}
    model = build({**config, **settings}).eval()
    assert isinstance(model, Seq2Seq)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def start(model: Seq2Seq, batch: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn_like(state) for state in model.initial_state(batch))


def mixed(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, TOKENS, (batch, time))


def in_use(sources: list[int], time: int) -> torch.Tensor:
    """Rows of so many source tokens and then target tokens."""
    x = torch.randint(SOURCES, TOKENS, (len(sources), time))
    for row, count in enumerate(sources):
        x[row, :count] = torch.randint(0, SOURCES, (count,))
    return x


@pytest.mark.parametrize(("cell", "layers", "stack"), KINDS)
@pytest.mark.parametrize("lengths", [None, [9, 7, 9, 2, 0, 5]])
def test_teacher_forcing_gives_what_streaming_token_by_token_gives(
    cell: str, layers: int, stack: int, lengths: list[int] | None
) -> None:
    model = make(cell, layers, stack)
    x = in_use([0, 3, 9, 2, 4, 0], 9)
    first = start(model, 6)
    ends = None if lengths is None else torch.tensor(lengths)
    y, *last = model(x, *first, lengths=ends)
    for row, length in enumerate(lengths or [9] * 6):
        state: tuple[torch.Tensor, ...] = tuple(tensor[:, row : row + 1] for tensor in first)
        for time in range(length):
            step, *state = model(x[row : row + 1, time : time + 1], *state)
            torch.testing.assert_close(y[row, time], step[0, 0], atol=1e-5, rtol=1e-5)
        assert not y[row, length:].any()
        for got, expected in zip(last, state, strict=True):
            torch.testing.assert_close(got[:, row], expected[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cell", "layers", "stack"), KINDS)
def test_each_token_takes_its_own_layers_from_the_shared_state(cell: str, layers: int, stack: int) -> None:
    model = make(cell, layers, stack)
    state = start(model, 1)
    # What the session keeps, the top last; pushing more than it holds loses the deepest.
    kept = [entry[None] for entry in state[-1]][::-1] if stack else []
    for token in (2, SOURCES, 0, 1, 4, 6, *range(SOURCES, SOURCES + 5), 3, SOURCES + 3, SOURCES + 1):
        source = token < SOURCES
        expected, after = model.embedding(torch.tensor([[token]])), []
        if stack and not source:
            popped = kept.pop() if kept else torch.zeros(1, 1, 6)
            expected = torch.cat([expected, popped], dim=2)
        for index, layer in enumerate(model.encoder if source else model.decoder):
            cells = state[: len(model.cell_names)]
            expected, states = layer(expected, tuple(tensor[index] for tensor in cells))
            after.append(states)
        if stack and source:
            kept = [*kept, expected][-stack:]
        y, *state = model(torch.tensor([[token]]), *state)
        torch.testing.assert_close(y, model.head(expected))
        for number, name in enumerate(model.cell_names):
            torch.testing.assert_close(
                state[number], torch.stack([states[number] for states in after]), msg=name
            )
        if stack:
            empty = [torch.zeros(1, 1, 6)] * (stack - len(kept))
            torch.testing.assert_close(state[-1], torch.cat([*kept[::-1], *empty]))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (3, 0), (3, 4)])
def test_no_timestep_leaves_the_state_as_it_is(batch: int, time: int) -> None:
    model = make()
    first = start(model, batch)
    y, *last = model(mixed(batch, time), *first, lengths=torch.zeros(batch, dtype=torch.int64))
    assert y.shape == (batch, time, CLASSES)
    torch.testing.assert_close(last, list(first))


def test_chunks_of_any_mix_equal_the_whole() -> None:
    model = make("lstm", 2)
    x, state = mixed(4, 11), start(model, 4)
    y, *last = model(x, *state)
    pieces = []
    for chunk in x.split([1, 3, 2, 5], dim=1):
        piece, *state = model(chunk, *state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), y)
    torch.testing.assert_close(list(state), last)


@pytest.mark.parametrize("stack", [0, 2])
def test_gradients_of_both_forms_are_the_same(stack: int) -> None:
    model = make("lstm", 2, stack)
    x = in_use([3, 3], 8)
    model(x)[0].sum().backward()
    fast = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    state, total = model.initial_state(2), torch.zeros(())
    for step in x.split(1, dim=1):
        y, *state = model(step, *state)
        total = total + y.sum()
    total.backward()
    for parameter, expected in zip(model.parameters(), fast, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4)


def test_configuration_builds_a_twin() -> None:
    model = make("gru", 2, 3)
    twin = build(json.loads(json.dumps(model.config))).eval()
    twin.load_state_dict(model.state_dict())
    x = mixed(2, 6)
    torch.testing.assert_close(twin(x), model(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "cell must be one of lstm, gru"),
        ({"input_size": CLASSES}, "source symbols .* must be at least 1; got 0"),
        ({"input_affine": True}, "takes tokens, which cannot be scaled"),
        ({"embedding_size": 0}, "embedding_size must be at least 1"),
        ({"stack": -1}, "stack must not be negative; got -1"),
        ({"voices": 2, "distribution": "bernoulli_logits"}, "which no voices choose: voices must be 0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**change)


def test_tensors_that_do_not_fit_are_refused() -> None:
    model = make()
    with pytest.raises(ShapeError, match=r"x must be integers \[batch, time\]; got torch.float32"):
        model(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"tokens must be 0 to 11; got -1 to 4"):
        model(torch.tensor([[4, -1]]))
    with pytest.raises(ShapeError, match=r"state h must be \[1, 2, 6\]"):
        model(mixed(2, 3), torch.zeros(2, 2, 6), torch.zeros(1, 2, 6))


def session_of(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("cell", "layers", "stack"), KINDS)
def test_the_graph_gives_what_pytorch_gives_for_any_mix(
    cell: str, layers: int, stack: int, tmp_path: Path
) -> None:
    model = make(cell, layers, stack)
    card = export_model(model, tmp_path / "m.onnx")
    assert card.proof["max_error"] <= 1e-5
    session = session_of(tmp_path / "m.onnx")
    names = [f"{name}_next" for name in model.state_names]
    x, first, lengths = mixed(6, 10), start(model, 6), [10, 1, 4, 10, 7, 2]
    x[0] = in_use([4], 10)[0]
    with torch.no_grad():
        y, *last = model(x, *first, lengths=torch.tensor(lengths))

    def run(x: np.ndarray, states: list[np.ndarray], ends: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
        feed = {
            "x": x,
            "lengths": np.array(ends, np.int32),
            **dict(zip(model.state_names, states, strict=True)),
        }
        given, *after = session.run(["y", *names], feed)
        return given, after

    states = [state.numpy() for state in first]
    given, after = run(x.numpy(), states, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(given[row, :length], y[row, :length].numpy(), atol=1e-5)
    for a, b in zip(after, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)

    with torch.no_grad():
        whole, *_ = model(x, *first)
    for begin, end in pairwise([0, 1, 2, 5, 10]):
        given, states = run(x[:, begin:end].numpy(), states, [end - begin] * 6)
        np.testing.assert_allclose(given, whole[:, begin:end].numpy(), atol=1e-5)


# Two layers of two stacks of layers, and what the decoder pops.
@pytest.mark.parametrize(("stack", "count"), [(0, 4), (3, 5)])
def test_a_step_multiplies_each_row_by_its_own_layers_only(stack: int, count: int, tmp_path: Path) -> None:
    export_model(make("lstm", 2, stack), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    (scan,) = [node for node in graph.node if node.op_type == "Scan"]
    (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    made_by = {output: node for node in body.node for output in node.output}
    products = [node for node in body.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == count
    for node in products:
        rows = made_by[node.input[0]]
        assert rows.op_type == "Gather"
        assert rows.input[1] in ("rows.encoder", "rows.decoder")


@pytest.mark.parametrize("token", [-1, TOKENS])
def test_a_token_outside_the_table_fails_the_run(token: int, tmp_path: Path) -> None:
    model = make()
    export_model(model, tmp_path / "m.onnx")
    state = np.zeros((1, 1, 6), np.float32)
    feed = {"x": np.array([[0, token]]), "lengths": np.array([2], np.int32), "h": state, "c": state}
    with pytest.raises(Exception, match="out of data bounds"):
        session_of(tmp_path / "m.onnx").run(None, feed)


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.6), ("int8", 0.45)])
def test_weights_inside_the_loop_are_stored_in_fewer_bits(
    precision: str, most: float, tmp_path: Path
) -> None:
    config = {"kind": "seq2seq", "input_size": TOKENS, "output_size": CLASSES, "hidden_size": 64}
    model = build({**config, "cell": "gru", "num_layers": 2})
    sizes = {}
    for name in ("fp32", precision):
        path = tmp_path / f"{name}.onnx"
        export_model(model, path, precision=name)
        sizes[name] = path.stat().st_size
    assert sizes[precision] < most * sizes["fp32"]


def test_the_card_says_how_the_decoder_goes_on(tmp_path: Path) -> None:
    card = export_model(make(), tmp_path / "m.onnx")
    assert card.generation == Generation(
        output="y",
        input="x",
        head="categorical",
        encoding="index",
        offset=SOURCES,
        start=SOURCES,
        stop=0,
    )


def test_an_output_that_is_no_logits_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="with logits as its output"):
        export_model(make(output_activation="softmax"), tmp_path / "m.onnx")


def lively(layers: int = 1, stack: int = 0, boundary: float = 4.0) -> Seq2Seq:
    """A model whose answers differ from source to source; how likely they end is up to `boundary`."""
    model = make("lstm", layers, stack)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.head.bias[0] += boundary
    return model


@pytest.mark.parametrize(("stack", "boundary"), [(0, 4.0), (3, 1.0)])
def test_greedy_decoding_is_arg_max_step_by_step(stack: int, boundary: float) -> None:
    model = lively(2, stack, boundary)
    sources = [[int(t) for t in row] for row in torch.randint(0, SOURCES, (9, 4))] + [[1], [2, 3]]
    answers = greedy(model, sources, limit=8)
    assert len({tuple(answer) for answer in answers}) > 1
    for source, answer in zip(sources, answers, strict=True):
        _, *state = model(torch.tensor([source]))
        expected, token = [], SOURCES
        while len(expected) < 8:
            y, *state = model(torch.tensor([[token]]), *state)
            symbol = int(y.argmax())
            if symbol == 0:
                break
            expected.append(symbol)
            token = SOURCES + symbol
        assert answer == expected


def log_probability(model: Seq2Seq, source: list[int], classes: list[int]) -> float:
    """Of an answer with its boundary, by teacher forcing."""
    x = torch.tensor([[*source, SOURCES, *(SOURCES + symbol for symbol in classes)]])
    with torch.no_grad():
        y, *_ = model(x)
    steps = torch.log_softmax(y[0, len(source) :].double(), dim=1)
    return float(steps[torch.arange(len(classes) + 1), torch.tensor([*classes, 0])].sum())


def test_a_beam_wide_enough_finds_the_likeliest_answer_of_all() -> None:
    model = lively()
    longest = 3
    for source in ([0], [1, 2], [6, 5, 4]):
        every = [
            list(classes)
            for length in range(longest)
            for classes in product(range(1, CLASSES), repeat=length)
        ]
        scores = {tuple(classes): log_probability(model, source, classes) for classes in every}
        found = beam(model, source, width=64, limit=longest, results=3, length_power=0.0)
        ended = [each for each in found if each.stopped]
        assert ended
        for each in ended:
            assert each.log_probability == pytest.approx(scores[each.classes], abs=1e-5)
        best = max(scores, key=lambda classes: scores[classes])
        assert ended[0].classes == best


def test_a_beam_of_one_without_length_norm_is_greedy_where_greedy_ends() -> None:
    model = lively(2)
    sources = [[int(t) for t in row] for row in torch.randint(0, SOURCES, (20, 4))]
    answers = greedy(model, sources, limit=12)
    ended = [(source, answer) for source, answer in zip(sources, answers, strict=True) if len(answer) < 12]
    assert ended
    for source, answer in ended:
        (found,) = beam(model, source, width=1, limit=12, length_power=0.0)
        assert found.stopped
        assert list(found.classes) == answer
        assert found.log_probability == pytest.approx(log_probability(model, source, answer), abs=1e-5)


def test_a_longer_answer_wins_by_its_score_per_symbol() -> None:
    model = lively()
    for source in ([0], [3, 1], [2, 2, 5]):
        for power in (0.0, 1.0):
            for each in beam(model, source, width=8, limit=6, results=4, length_power=power):
                length = len(each.classes) + each.stopped
                assert each.score == pytest.approx(each.log_probability / length**power)
