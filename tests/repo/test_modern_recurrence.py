"""docs/modern-recurrence.md: its modules are the example's, its commands export them, what is served is PyTorch's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from streamcell.cli.main import app
from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.export import ProofError, export_module, load_module

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "modern_recurrence.py"
PAGE = (ROOT / "docs" / "modern-recurrence.md").read_text()
COMMANDS = {
    command[2].rpartition(":")[2]: command[1:]
    for command in map(shlex.split, re.findall(r"^streamcell export .*$", PAGE, re.MULTILINE))
}
KINDS = list(COMMANDS)
SIZE, SESSIONS, TIME = 16, 8, 40


def module(kind: str) -> nn.Module:
    torch.manual_seed(5)
    return load_module(f"{EXAMPLE}:{kind}").eval()


def full(made: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = made(x, *made.initial_state(len(x)))[0]  # type: ignore[operator]
    return y


def sequences() -> Tensor:
    """[rows, time, size]; half of the rows are loud, as far as gates and exponents go that must not overflow."""
    x = torch.randn(SESSIONS, TIME, SIZE, generator=torch.Generator().manual_seed(2))
    x[1::2] *= 10
    return x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's commands write."""
    folder = tmp_path_factory.mktemp("modern")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS.values():
            torch.manual_seed(5)
            source = command[1].replace("examples/", f"{EXAMPLE.parent}/")
            result = CliRunner().invoke(app, [command[0], source, *command[2:]])
            assert result.exit_code == 0, result.output
    return folder / "models"


@pytest.fixture(scope="module")
def server(exported: Path, start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server(exported)


def name_of(kind: str) -> str:
    return Path(COMMANDS[kind][COMMANDS[kind].index("--out") + 1]).stem


def test_interleaved_sessions_get_what_the_module_gives_for_the_whole_sequence(
    server: ServerProcess, interleaved: Callable[..., dict[str, np.ndarray[Any, Any]]]
) -> None:
    x = sequences()
    with connect(server.target) as client:
        assert [list(client.model(name_of(kind)).restrictions) for kind in KINDS] == [[]] * len(KINDS)
        got = interleaved(client, {name_of(kind): x.numpy() for kind in KINDS}, 1, most=12)
    for kind in KINDS:
        expected = full(module(kind), x).numpy()
        np.testing.assert_allclose(got[name_of(kind)], expected, rtol=1e-3, atol=2e-5, err_msg=kind)


def test_a_session_takes_the_bytes_that_the_page_says(server: ServerProcess) -> None:
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", PAGE, re.MULTILINE))
    loaded = {entry["model"]: entry for entry in server.log if entry["event"] == "model loaded"}
    taken = {kind: f"{loaded[name_of(kind)]['state_bytes_a_session']:,}" for kind in KINDS}
    assert taken == said


def test_the_page_shows_every_module_of_the_example_as_it_is() -> None:
    source = EXAMPLE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if block not in source] == []
    shown = "".join(blocks)
    defined = re.findall(r"^(?:class|def) (?!main\b)(\w+)", source, re.MULTILINE)
    assert [name for name in defined if not re.search(rf"^(class|def) {name}\b", shown, re.MULTILINE)] == []
    assert set(KINDS) == set(re.findall(r"^class (\w+)", source, re.MULTILINE))


# The recurrences as the page writes them, one timestep after another, in float64.


def min_gru(m: Any, x: Tensor) -> Tensor:
    h, outputs = torch.zeros(len(x), m.units), []
    for t in x.unbind(1):
        z = torch.sigmoid(m.gate(t))
        h = (1 - z) * h + z * m.candidate(t)
        outputs.append(h)
    return torch.stack(outputs, 1)


def min_lstm(m: Any, x: Tensor) -> Tensor:
    h, outputs = torch.zeros(len(x), m.units), []
    for t in x.unbind(1):
        f, i = torch.sigmoid(m.gates(t)).chunk(2, -1)
        h = f / (f + i) * h + i / (f + i) * m.candidate(t)
        outputs.append(h)
    return torch.stack(outputs, 1)


def selective_ssm(m: Any, x: Tensor) -> Tensor:
    u, gate = m.into(x).chunk(2, -1)
    u = F.silu(m.conv(F.pad(u.transpose(1, 2), (m.taps - 1, 0)))).transpose(1, 2)
    b, c = m.choose(u).chunk(2, -1)
    delta = F.softplus(m.delta(u))
    # h_t = Σ_s exp(A (Δ_{s+1} + … + Δ_t)) Δ_s B_s u_s: no recurrence at all.
    total = delta.cumsum(1)
    left = torch.exp(-(total[:, :, None] - total[:, None])[..., None] * m.log_a.exp())
    left = left.masked_fill(~torch.ones(left.shape[1:3]).tril().bool()[:, :, None, None], 0)
    h = (left * ((delta * u)[..., None] * b[:, :, None])[:, None]).sum(2)
    return m.out(((h * c[:, :, None]).sum(-1) + m.skip * u) * F.silu(gate))  # type: ignore[no-any-return]


def heads(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (m.heads, m.width)) for part in m.qkv(x).chunk(3, -1))


def linear_attention(m: Any, x: Tensor) -> Tensor:
    s, z, outputs = torch.zeros(len(x), m.heads, m.width, m.width), torch.zeros(len(x), m.heads, m.width), []
    for t in x.unbind(1):
        q, k, v = heads(m, t)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        s, z = s + k[..., None] * v[..., None, :], z + k
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, s) / ((q * z).sum(-1)[..., None] + 1e-6))
    return m.out(torch.stack(outputs, 1).flatten(2))  # type: ignore[no-any-return]


def mlstm(m: Any, x: Tensor) -> Tensor:
    """Without the stabiliser."""
    C, n, outputs = torch.zeros(len(x), m.heads, m.width, m.width), torch.zeros(len(x), m.heads, m.width), []
    for t in x.unbind(1):
        q, k, v = heads(m, t)
        k = k / m.width**0.5
        take, forget = m.gates(t).chunk(2, -1)
        i, f = take.exp()[..., None], torch.sigmoid(forget)[..., None]
        C, n = f[..., None] * C + (i * k)[..., None] * v[..., None, :], f * n + i * k
        size = (n * q).sum(-1).abs().clamp(min=1)[..., None]
        h = torch.einsum("bhk,bhkv->bhv", q, C) / size
        outputs.append(torch.sigmoid(m.open(t)) * h.flatten(1))
    return m.out(torch.stack(outputs, 1))  # type: ignore[no-any-return]


def rolling_transformer(m: Any, x: Tensor) -> Tensor:
    """Attention over the whole sequence under a band of `window` timesteps, positions counted from its start."""
    q, k, v = heads(m, m.norm(x))
    angle = torch.arange(x.shape[1])[:, None, None] * m.frequencies

    def turned(value: Tensor) -> Tensor:
        pairs = torch.complex(*value.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], -1)

    scores = torch.einsum("bthw,bshw->bhts", turned(q), turned(k)) / m.width**0.5
    band = torch.ones(scores.shape[2:]).tril().triu(1 - m.window).bool()
    attention = scores.masked_fill(~band, -torch.inf).softmax(-1)
    x = x + m.out(torch.einsum("bhts,bshw->bthw", attention, v).flatten(2))
    return x + m.mlp(m.norm_mlp(x))  # type: ignore[no-any-return]


RECURRENCES = {
    "MinGRU": min_gru,
    "MinLSTM": min_lstm,
    "SelectiveSSM": selective_ssm,
    "LinearAttention": linear_attention,
    "MLSTM": mlstm,
    "RollingTransformer": rolling_transformer,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_computes_the_recurrence_of_the_page(kind: str) -> None:
    made, x = module(kind).double(), sequences().double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            expected = RECURRENCES[kind](made, x)
        given = full(made, x)
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_allclose(given.numpy(), expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_any_size_are_steps_even_for_very_loud_input(kind: str) -> None:
    """Gates of -1000: a sigmoid is 0 there and its logarithm not finite."""
    made: Any = module(kind)
    x = sequences() * 100
    whole, states, steps = full(made, x), made.initial_state(SESSIONS), []
    with torch.no_grad():
        for t in range(TIME):
            y, *states = made(x[:, t : t + 1], *states)
            steps.append(y)
    assert torch.isfinite(whole).all()
    scale = whole.abs().amax((0, 2), keepdim=True)
    assert ((torch.cat(steps, 1) - whole).abs() / scale).max() < 1e-3


def test_a_chunk_that_starts_with_a_new_stabiliser_is_refused(tmp_path: Path) -> None:
    made: Any = module("MLSTM")
    right = made.forward
    made.forward = lambda x, C, n, m: right(x, C, n, torch.zeros_like(m))
    with pytest.raises(ProofError, match="other outputs step by step than for the whole sequence"):
        export_module(made, tmp_path / "m.onnx", example_x=sequences(), layout="batch_time")
