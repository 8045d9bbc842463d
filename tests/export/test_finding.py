"""How a module is called is found by calling it: axes, states and outputs of modules as people write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamcell.export import ExportError, UserCodeError, load_module
from streamcell.export.study import study
from streamcell.export.tensors import one_thread
from streamcell.export.user_module import UserModule

from . import ordinary as o

X = torch.randn(4, 16, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 11, (4, 16), generator=torch.Generator().manual_seed(0))
H, HC = {"hidden": (1, 8)}, {"hidden0": (1, 8), "hidden1": (1, 8)}


def found(module: nn.Module, example: Any = X, time_axis: bool | None = None) -> UserModule:
    torch.manual_seed(3)
    with one_thread():
        names = getattr(module, "state_names", None)
        return study(module.eval(), example, None, names, time_axis=time_axis, tolerance=1e-5)[0]


@pytest.mark.parametrize(
    ("module", "order", "states", "outputs"),
    [
        (o.Hidden(), "batch_time", HC, ("y",)),
        (o.Hidden(nn.GRU, num_layers=2), "batch_time", {"hidden": (2, 8)}, ("y",)),
        (o.Hidden(batch_first=False), "time_batch", HC, ("y",)),
        (o.Hidden(nn.RNN, batch_first=False), "time_batch", H, ("y",)),
        (o.Unpacked(), "batch_time", {"h": (1, 8), "c": (1, 8)}, ("y",)),
        (o.InitHidden(), "batch_time", HC, ("y",)),
        (o.MaskFirst(), "batch_time", HC, ("y",)),
        (o.Stacked(), "batch_time", {"states00": (1, 8), "states01": (1, 8), "states1": (1, 4)}, ("y",)),
        (o.Surrounded(), "batch_time", HC, ("y0", "y2")),
        (o.Classifier(), "batch_time", HC, ("y",)),
        (o.Classifier(batch_first=False), "time_batch", HC, ("y",)),
        (o.DictOut(), "batch_time", HC, ("logits", "value")),
        (o.CharCell(), "step", {"hidden": (8,)}, ("y",)),
        (o.Frequencies(), "batch_time", {}, ("y",)),
        (nn.LSTM(5, 8), "time_batch", {"hx0": (1, 8), "hx1": (1, 8)}, ("y",)),
        (nn.GRU(5, 8, batch_first=True), "batch_time", {"hx": (1, 8)}, ("y",)),
        (nn.GRUCell(5, 8), "step", {"hx": (8,)}, ("y",)),
        (nn.LSTMCell(5, 8), "step", {"hx0": (8,), "hx1": (8,)}, ("y",)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_axes_states_and_outputs_are_found(
    module: nn.Module, order: str, states: dict[str, tuple[int, ...]], outputs: tuple[str, ...]
) -> None:
    user = found(module)
    assert user.found.calling.order == order
    assert {state.input: state.shape for state in user.found.states} == states
    assert user.found.outputs == outputs


def test_an_example_of_single_timesteps_is_one_of_a_cell() -> None:
    assert found(nn.GRUCell(5, 8), X[0]).found.calling.order == "step"
    assert found(nn.GRUCell(5, 8), X[0], time_axis=False).found.calling.order == "step"


def test_a_sequence_is_not_taken_for_one_timestep_of_its_length() -> None:
    class Joined(o.Hidden):
        def forward(self, x: torch.Tensor, hidden: Any = None) -> Any:
            y, hidden = super().forward(x, hidden)
            return y.flatten(1), hidden

    with pytest.raises(
        ExportError, match=re.escape("y must be [batch, time, ...] = [2, 5, ...]; got [2, 15]")
    ):
        found(Joined())


def test_initial_values_of_a_tutorials_method_are_kept() -> None:
    h, c = found(o.InitHidden()).found.states
    assert (h.initial, c.initial) == (0.5, 0.0)


def test_a_state_that_indexes_a_table_is_found() -> None:
    # All but the last row: one more is none for some of the states that the module returns.
    tokens = torch.full((4, 16), 10)
    tokens[:, ::2] = 3
    (state,) = found(o.LastToken(), {"token": tokens}).found.states
    assert (state.input, state.dtype, state.initial) == ("before", "int64", 0.0)


def test_several_inputs_go_by_their_parameters() -> None:
    user = found(o.TwoInputs(), {"tokens": TOKENS, "x": X[..., :3]})
    assert user.found.examples.names == ("tokens", "x")
    assert user.found.examples.step_shapes == ((), (3,))
    assert user.found.outputs == ("y0", "y1")
    assert [state.input for state in user.found.states] == ["hidden"]


def test_dataclasses_and_named_tuples() -> None:
    user = found(o.Dataclasses(), {"features": o.Features(X[..., :3], TOKENS)})
    assert user.found.examples.names == ("audio", "token")
    assert user.found.outputs == ("logits", "value")
    assert [(s.input, s.dtype, s.initial) for s in user.found.states] == [
        ("carry_h", "float32", 0.0),
        ("carry_seen", "int64", 1.0),
    ]


def test_a_dict_goes_by_its_keys_in_whatever_order_they_come_back() -> None:
    user = found(o.DictIn(), {"batch": {"audio": X, "video": X[..., :2]}})
    assert user.found.examples.names == ("audio", "video")
    assert [(s.input, s.initial) for s in user.found.states] == [("state_c", 0.0), ("state_h", 1.0)]


def test_an_example_for_no_parameter_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ExportError, match=r"TwoInputs\.forward has no parameter 'z'; it takes tokens, x, hidden"
    ):
        found(o.TwoInputs(), {"tokens": TOKENS, "z": X})


LSTM_LINES = """LSTM 'rnn' keeps no state between calls: take (h, c) and return them

    def forward(self, x, hidden=None):
        y, hidden = self.rnn(..., hidden)
        return y, hidden"""


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (o.Plain(), LSTM_LINES),
        (o.Plain(batch_first=False), LSTM_LINES),
        (o.Plain(nn.GRU), "GRU 'rnn' keeps no state between calls: take h and return it\n"),
        (o.Looped(), "GRUCell 'cell' keeps no state between calls: take h and return it\n"),
        (o.Hidden(bidirectional=True), "LSTM 'rnn' is bidirectional: it sees the timesteps to come"),
        (o.Plain(nn.GRU, bidirectional=True), "GRU 'rnn' is bidirectional: it sees the timesteps to come"),
        (nn.LSTM(5, 8, bidirectional=True), "LSTM is bidirectional: it sees the timesteps to come"),
        (o.Convolved("same"), "Conv1d 'conv' has padding='same' on both sides: it sees 1 timestep to come"),
        (o.Convolved(2), "Conv1d 'conv' has padding=2 on both sides"),
        (
            o.Convolved(0),
            "Conv1d 'conv' keeps no history between calls. Give it padding=0 and take the last 2",
        ),
        (o.Convolved(1), "return y, seen[:, :, -2:]"),
        (o.Layered(nn.Softmax(dim=1)), "gives other outputs step by step than for the whole sequence"),
        (o.Layered(nn.Softmax(dim=0)), "gives a row other outputs alone than beside others"),
        (o.Chomped(), "Conv1d 'conv' keeps no history between calls. Give it padding=0 and take the last 2"),
        (o.Flagged(), "    def forward(self, x, hidden=None, *, return_state=False):\n"),
        (
            o.Attentive(),
            "MultiheadAttention 'attention' sees the whole sequence: keep the last N keys and values",
        ),
        (o.Mixing(), "gives a row other outputs alone than beside others"),
        (o.Noisy(), "Noisy gives other outputs each time for the same inputs"),
        (o.Squeezed(), "y of one timestep should be [2, 1, 3] as in a chunk and is [2, 3]; does a squeeze()"),
        (o.Cached(), "state cache grows by one for each timestep; keep the last N of them, `cache[:, -N:]`"),
        (o.Learned(), "return (torch.zeros(1, batch, 8),)"),
        (o.Hidden().double(), "rnn.weight_ih_l0 is float64: cast the module with `.float()`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_streamed_is_told_by_its_layer_with_what_to_write(
    module: nn.Module, text: str
) -> None:
    with pytest.raises(ExportError, match=re.escape(text)):
        found(module)


def test_what_is_kept_on_the_module_is_told_once() -> None:
    with pytest.raises(
        ExportError, match="OnItself keeps 'hidden' on itself between calls: take it as"
    ) as told:
        found(o.OnItself())
    assert "LSTM" not in str(told.value)


def test_a_layer_over_something_else_than_time_is_not_blamed() -> None:
    class Both(o.Frequencies):
        def __init__(self) -> None:
            super().__init__()
            self.over_time = nn.GRU(40, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.over_time(super().forward(x))[0]
            return result

    with pytest.raises(ExportError, match="GRU 'over_time' keeps no state between calls") as told:
        found(Both())
    assert "bidirectional" not in str(told.value)


def test_the_lines_to_write_for_a_convolution_mend_it() -> None:
    torch.manual_seed(1)
    broken = o.Convolved(1)
    with pytest.raises(ExportError) as refused:
        found(broken)
    lines = str(refused.value).partition("\n\n")[2]
    namespace: dict[str, Any] = {"torch": torch, "Convolved": o.Convolved}
    exec(f"class Mended(Convolved):\n{lines}", namespace)
    assert [state.shape for state in found(namespace["Mended"](0)).found.states] == [(5, 2)]


def test_the_module_of_the_page_is_exported_and_without_its_state_refused_as_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    section = page.partition("## A module of your own")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    namespace: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(code, namespace)
    user = found(namespace["Tagger"](), {"tokens": TOKENS})
    assert [state.input for state in user.found.states] == ["hidden0", "hidden1"]
    forgetful = code.replace(", hidden=None", "").replace(", hidden)", ")").replace(", hidden  ", "  ")
    exec(forgetful, namespace)
    with pytest.raises(ExportError) as told:
        found(namespace["Tagger"](), {"tokens": TOKENS})
    shown = section.partition("streamcell export: ")[2].partition("```")[0]
    first, _, rest = shown.strip().partition("\n")
    said, _, lines = str(told.value).partition("\n")
    assert (said.partition(": error")[0], lines) == (first.partition(": error")[0], rest)


def test_a_state_without_an_initial_state_is_told_with_the_lines_to_write() -> None:
    cell = o.CharCell()
    cell.init_hidden = None  # type: ignore[assignment]
    with pytest.raises(
        ExportError, match=r"CharCell\.forward takes hidden, and nothing says what is there"
    ) as told:
        found(cell)
    assert "def initial_state(self, batch):" in str(told.value)


def test_an_exception_is_the_modules_own_with_its_last_line() -> None:
    class Raises(o.Hidden):
        def forward(self, x: Any, hidden: Any = None) -> Any:
            return super().forward(x, hidden)[0].no_such_method()

    with pytest.raises(
        UserCodeError, match=r"test_finding.py:\d+, in forward, 'return super.*': AttributeError: "
    ) as told:
        found(Raises())
    assert str(told.value).startswith("Raises does not run on x ([2, 5, 5]): ")


def test_a_value_error_of_the_module_is_its_own() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
            return result

    with pytest.raises(
        UserCodeError, match=r"test_finding.py:\d+, in forward, .*: ValueError: Expected more than 1"
    ):
        found(Normed())


def test_an_exception_without_a_line_of_the_user_names_no_file_of_ours() -> None:
    with pytest.raises(UserCodeError) as told:
        found(nn.GRU(5, 8, batch_first=True), X[..., :4])
    assert str(told.value) == (
        "GRU does not run on x ([2, 5, 4]): RuntimeError: input.size(-1) must be equal to input_size. Expected 5, got 4"
    )


def test_a_long_line_of_the_user_is_cut(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(f"x = {' + '.join(['1'] * 400)} + missing\n")
    with pytest.raises(
        UserCodeError, match=r"does not run: .*long\.py:1, in <module>, 'x = 1 \+ 1.* …': NameError"
    ) as told:
        load_module(f"{tmp_path / 'long.py'}:x")
    assert len(str(told.value)) < 400


def test_a_call_leaves_the_module_as_it_was() -> None:
    module = o.OnItself()
    with pytest.raises(ExportError):
        found(module)
    assert "hidden" not in vars(module)
