"""Polling: the folder is followed, and what is broken or gone in it takes nothing from those who are served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.model_control import Model, Served, Start, X, loads, reason


def test_polling_follows_the_folder(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    served = start("--model-poll-s", "0.1", "--unload-grace", "0.2", control="poll")
    assert served.client.models() == []
    made["one"].put(served.folder / "lstm.onnx")
    assert eventually(served.ready)
    session = served.client.session("lstm")
    first = session.run(X[:10])
    # Changed: the live session stays on the old one.
    made["two"].put(served.folder / "lstm.onnx")
    assert eventually(lambda: loads(served) == 2)

    def new_ones_are_on_the_new_one() -> bool:
        with served.client.session("lstm") as new:
            return made["two"].gave(new.run(X))

    assert eventually(new_ones_are_on_the_new_one)  # it is loaded before it is served
    assert served.index() == {("lstm", "1"): "READY"}
    assert made["one"].gave(np.concatenate([first, session.run(X[10:])]))
    # Broken: what is served still is, and the fault is logged once, until the file changes.
    broken = served.folder / ".broken"
    broken.write_bytes(b"no model")
    os.replace(broken, served.folder / "lstm.onnx")
    assert eventually(lambda: failures(served) == 1)
    made["mlp"].put(served.folder / "mlp" / "3" / "model.onnx")
    assert eventually(lambda: served.ready("mlp"))
    with served.client.session("lstm") as new:
        assert made["two"].gave(new.run(X))
    # Removed: unloaded, with the grace.
    (served.folder / "lstm.onnx").unlink()
    assert eventually(lambda: not served.ready())
    assert eventually(lambda: list(served.client.sessions("mlp")) == list(served.client.sessions()))
    assert reason(lambda: session.run(X)) == "MODEL_UNLOADED"
    assert [model.name for model in served.client.models()] == ["mlp"]
    assert made["mlp"].gave(served.client.predict("mlp", X[None])[0])


def failures(served: Served) -> int:
    return sum(entry["event"] == "model not loaded" for entry in served.server.log)


def test_a_folder_that_vanishes_unloads_nothing(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--model-poll-s", "0.1", control="poll")
    away = tmp_path / "away"
    served.folder.rename(away)
    assert eventually(lambda: any(entry["event"] == "folder of models" for entry in served.server.log))
    with served.client.session("lstm") as session:
        assert made["one"].gave(session.run(X))
    away.rename(served.folder)


def test_a_file_that_is_gone_stays_served_where_unloading_is_refused(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--model-poll-s", "0.05", "--unload", "refuse", control="poll")
    with served.client.session("lstm") as session:
        first = session.run(X[:10])
        (served.folder / "lstm.onnx").unlink()
        assert eventually(
            lambda: any("its file is gone" in entry.get("reason", "") for entry in served.server.log)
        )
        with served.client.session("lstm") as other:
            assert made["one"].gave(other.run(X))
        assert made["one"].gave(np.concatenate([first, session.run(X[10:])]))
    assert eventually(lambda: not served.ready())
    assert eventually(served.released())
