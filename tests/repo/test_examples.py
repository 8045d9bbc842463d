"""The example scripts against a real server: both do the same work, and it is what PyTorch does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.proto import pb

EXAMPLES = Path(__file__).parents[2] / "examples"
SEQUENCES, STEPS = 4, 10


def run(name: str, *arguments: str) -> dict[tuple[int, int], list[float]]:
    """What the script printed: the output by sequence and step index."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(int(line[0]), int(line[1])): [float(value) for value in line[2:]] for line in lines}


def test_both_clients_do_the_same_work(served: Any, modules: dict[str, torch.nn.Module]) -> None:
    native = run("native_client.py", served.target, "lstm")
    assert list(native) == [(sequence, step) for step in range(1, STEPS + 1) for sequence in range(SEQUENCES)]
    x = np.random.default_rng(1).standard_normal((SEQUENCES, STEPS, 3)).astype(np.float32)
    with torch.no_grad():
        y = modules["lstm"](torch.from_numpy(x))[0].numpy()
    for (sequence, step), output in native.items():
        assert output == pytest.approx(y[sequence, step - 1], abs=1e-5)
    triton = run("triton_client.py", served.target, "lstm")
    assert list(triton) == list(native)
    for key, output in triton.items():
        assert output == pytest.approx(
            native[key], abs=2e-6
        )  # the last digit printed may be rounded either way


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f"examples/{script.name}" in readme, script.name


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_every_example_runs_without_arguments(script: Path) -> None:
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= STEPS


def test_the_client_in_go_names_what_the_proto_has() -> None:
    """No test compiles it: Go and its packages would cost each run 600 MB (docs/clients.md)."""
    source = (EXAMPLES / "go/main.go").read_text()
    messages = dict(pb.DESCRIPTOR.message_types_by_name)
    (service,) = pb.DESCRIPTOR.services_by_name
    made = set(re.findall(r"\bpb\.(\w+)", source))
    assert made - messages.keys() == {f"New{service}Client"}
    assert f".{service}Client(connection).Stream(" in source.replace("pb.New", ".")
    fields = {
        "".join(part.capitalize() for part in field.name.split("_")): (name, field.name)
        for name in ("StreamRequest", "StreamResponse", "OpenSession", "SessionOpened", "TensorSpec")
        for field in messages[name].fields
    }
    used = re.findall(
        r"\.Get(\w+)\(\)|\b(?:reply|inputs\[0\])\.(?!Get)([A-Z]\w+)|[{ ]([A-Z]\w+): [&\[m]", source
    )
    used = {name for names in used for name in names if name}
    assert len(used) >= 8
    assert used - fields.keys() == set()
