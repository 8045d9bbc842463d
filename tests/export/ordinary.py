"""Modules as people write them, each small: states nested or not, given or not, many inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Recurrent(nn.Module):
    """What the modules below share: a recurrent layer and a linear one."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **settings: Any) -> None:
        super().__init__()
        settings = {"batch_first": True, **settings}
        self.rnn: Any = kind(5, 8, **settings)  # type: ignore[arg-type]
        self.fc = nn.Linear(16 if settings.get("bidirectional") else 8, 3)


class Hidden(Recurrent):
    """`hidden=None`, given back as it came: (h, c) or h."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y), hidden


class Unpacked(Recurrent):
    """h and c as parameters of their own, returned as a tuple; a flag that is no state."""

    def forward(self, x: Tensor, h: Any = None, c: Any = None, scale: float = 1.0) -> Any:
        y, (h, c) = self.rnn(x, None if h is None else (h, c))
        return scale * self.fc(y), (h, c)


class InitHidden(Recurrent):
    """The state by a method, as in many tutorials."""

    def init_hidden(self, batch_size: int) -> Any:
        return torch.full((1, batch_size, 8), 0.5), torch.zeros(1, batch_size, 8)

    def forward(self, x: Tensor, hidden: Any) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y), hidden


class MaskFirst(Recurrent):
    """An optional parameter that is no state stands before the one that is."""

    def forward(self, x: Tensor, mask: Any = None, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x if mask is None else x * mask, hidden)
        return self.fc(y), hidden


class NoneDefaults(Recurrent):
    """A default of nested None, a result that is None, an array as a default of something else."""

    def forward(self, x: Tensor, state: Any = (None, None), scale: Any = np.ones(3)) -> Any:  # noqa: B008  # as people do
        y, state = self.rnn(x, None if state[0] is None else state)
        return self.fc(y) * torch.from_numpy(scale).float(), state, None


class ListOfCells(nn.Module):
    """A list of cells, their states in a list that is made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(5, 8), nn.LSTMCell(8, 4)])

    def forward(self, x: Tensor, states: Any = None) -> Any:
        states = [None, None] if states is None else list(states)
        ys = []
        for t in range(x.shape[1]):
            y = x[:, t]
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(y, states[layer])
                y = states[layer][0]
            ys.append(y)
        return torch.stack(ys, 1), states


class Stacked(nn.Module):
    """Two layers of different kinds; their states nest three deep."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.LSTM(5, 8, batch_first=True), nn.GRU(8, 4, batch_first=True)

    def forward(self, x: Tensor, states: Any = None) -> Any:
        low, high = (None, None) if states is None else states
        y, low = self.low(x, low)
        y, high = self.high(y, high)
        return y, (low, high)


class Classifier(Recurrent):
    """An answer for the sequence so far."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y[:, -1] if self.rnn.batch_first else y[-1]), hidden


class DictOut(Recurrent):
    """Outputs and state in one dict, the state under another name than its parameter's."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x, hidden)
        return {"state": hidden, "logits": self.fc(y), "value": y.mean(-1)}


@dataclass
class Features:
    audio: Tensor
    token: Tensor


@dataclass
class Answer:
    logits: Tensor
    value: Tensor


class Carry(NamedTuple):
    h: Tensor
    seen: Tensor


class Dataclasses(nn.Module):
    """A dataclass in, a dataclass out, a named tuple as the state, an integer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.rnn = nn.GRU(7, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def initial_state(self, batch: int) -> Carry:
        return Carry(torch.zeros(1, batch, 8), torch.ones(batch, dtype=torch.int64))

    def forward(self, features: Features, carry: Carry) -> tuple[Answer, Carry]:
        y, h = self.rnn(torch.cat([features.audio, self.table(features.token)], -1), carry.h)
        seen = carry.seen[:, None] + torch.arange(y.shape[1])
        return Answer(self.fc(y), y.mean(-1) / seen), Carry(h, carry.seen + y.shape[1])


class DictIn(nn.Module):
    """A dict in, and a state in a dict whose keys come back in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(7, 8)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"c": torch.zeros(batch, 8), "h": torch.ones(batch, 8)}

    def forward(self, batch: dict[str, Tensor], state: dict[str, Tensor]) -> Any:
        x = torch.cat([batch["audio"], batch["video"]], -1)
        h, c = self.cell(x, (state["h"], state["c"]))
        return h, {"h": h, "c": c}


class TwoInputs(nn.Module):
    """Tokens and numbers in, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.rnn = nn.GRU(7, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(torch.cat([self.table(tokens), x], -1), hidden)
        return self.fc(y), y.mean(-1), hidden


class CharCell(nn.Module):
    """The tutorials' cell: one timestep, a hidden state, a function that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2o = nn.Linear(5 + 8, 8), nn.Linear(8, 3)

    def init_hidden(self, batch: int) -> Tensor:
        return torch.zeros(batch, 8)

    def forward(self, input: Tensor, hidden: Tensor) -> Any:  # noqa: A002  # the tutorial's name
        hidden = torch.tanh(self.i2h(torch.cat((input, hidden), 1)))
        return self.h2o(hidden), hidden


class Plain(Recurrent):
    """No state in its signature."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.rnn(x)[0])
        return result


class OnItself(Recurrent):
    """The state as an attribute."""

    hidden: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.rnn(x, self.hidden)
        result: Tensor = self.fc(y)
        return result


class Looped(nn.Module):
    """A cell in a loop that begins anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = None, []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


class Convolved(nn.Module):
    """A convolution over time, padded as it is told."""

    def __init__(self, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return result


class Chomped(nn.Module):
    """A convolution that is padded on both sides and cut again, as in many temporal convolutional networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(5, 6, 3, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.transpose(1, 2))[:, :, :-2].transpose(1, 2)
        return result


class Surrounded(Recurrent):
    """The state between two outputs."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y), hidden, y.mean(-1)


class Layered(nn.Module):
    """One layer on the input as it is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class LastToken(nn.Module):
    """The state is the token before, which indexes a table: 0 at first, and never the row behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, token: Tensor, before: Any = None) -> Any:
        if before is None:
            before = torch.zeros(len(token), dtype=torch.int64)
        seen = torch.cat([before[:, None], token[:, :-1]], 1)
        return self.table(token) + self.table(seen), token[:, -1]


class Flagged(Recurrent):
    """Returns its state only if it is told to."""

    def forward(self, x: Tensor, hidden: Any = None, *, return_state: bool = False) -> Any:
        y, hidden = self.rnn(x, hidden)
        return (self.fc(y), hidden) if return_state else self.fc(y)


class Attentive(nn.Module):
    """Attention over the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x)[0]
        return result


class Cached(nn.Module):
    """A cache that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(5, 4)

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        key = self.key(x)
        cache = key if cache is None else torch.cat([cache, key], 1)
        return key + cache.mean(1, keepdim=True), cache


class Learned(nn.Module):
    """Begins from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, batch_first=True)
        self.h0 = nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        return self.rnn(x, self.h0.expand(1, len(x), 8).contiguous() if hidden is None else hidden)


class Frequencies(nn.Module):
    """Bidirectional over the frequencies of a timestep, which looks at no other timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, size = x.shape
        result: Tensor = self.rnn(x.reshape(batch * time, size, 1))[0].reshape(batch, time, -1)
        return result


class Mixing(nn.Module):
    """Every row sees the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Noisy(nn.Module):
    """Dropout that is always on."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


class Squeezed(Recurrent):
    """Drops an axis of 1."""

    def forward(self, x: Tensor, hidden: Any = None) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.fc(y).squeeze(), hidden
