"""From a file with a module, written as people write them, to a live endpoint, by the shell alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.export import load_module

SOURCE = '''
"""A tagger of words, with the weights that training left."""
import torch
import torch.nn as nn


class Tagger(nn.Module):
    def __init__(self, words=50, hidden=16, tags=5):
        super().__init__()
        self.embedding = nn.Embedding(words, 8)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(8 + 2, hidden, num_layers=2, batch_first=True, dropout=0.2)
        self.tag = nn.Linear(hidden, tags)
        self.confidence = nn.Linear(hidden, 1)

    def forward(self, words, shape, hidden=None):
        x = torch.cat([self.dropout(self.embedding(words)), shape], dim=-1)
        out, (h, c) = self.lstm(x, hidden)
        return {"tags": self.tag(out), "confidence": torch.sigmoid(self.confidence(out)).squeeze(-1)}, (h, c)


def trained():
    torch.manual_seed(5)
    return Tagger()
'''


def test_a_module_file_exports_serves_and_streams_what_pytorch_computes(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "tagger.py"
    file.write_text(SOURCE)
    command = [Path(sys.executable).with_name("streamcell"), "export", f"{file}:trained"]
    inputs = ["--input", "words:int64", "--input", "shape:float32[2]"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "models" / "tagger.onnx", *inputs],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "words int64[], shape float32[2] → tags float32[5], confidence float32[]" in done.stdout
    server = start_server(tmp_path / "models")
    rng = np.random.default_rng(0)
    words = rng.integers(0, 50, (3, 20))
    shape = rng.standard_normal((3, 20, 2), np.float32)
    module = load_module(f"{file}:trained").eval()
    with torch.no_grad():
        wanted, _ = module(torch.from_numpy(words), torch.from_numpy(shape))
    with connect(server.target) as client:
        sessions = [client.session("tagger") for _ in range(3)]
        given: list[list[dict[str, np.ndarray]]] = [[], [], []]
        # Interleaved, in pieces of several sizes.
        for start, end in [(0, 1), (1, 2), (2, 7), (7, 20)]:
            for row, session in enumerate(sessions):
                given[row].append(
                    session.run({"words": words[row, start:end], "shape": shape[row, start:end]})
                )
        for session in sessions:
            session.close()
    for row in range(3):
        for name in ("tags", "confidence"):
            joined = np.concatenate([piece[name] for piece in given[row]])
            np.testing.assert_allclose(joined, wanted[name][row].numpy(), atol=1e-5)
