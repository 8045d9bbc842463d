"""The page of examples/browser/ in a real browser: a microphone streams through a model that hears speech."""

from __future__ import annotations

import functools
import threading
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.export import export_run
from streamcell.models import load_run, presets, train
from streamcell.models.data import registry, speech, voice
from tests.support.browser import Browser

from .conftest import port_of

PAGE = Path(__file__).parents[3] / "examples/browser"
RATE = 48_000
Eventually = Callable[[Callable[[], bool]], bool]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of the page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(PAGE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def listener(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small voice activity model, trained for a few seconds, and its export in the folder `models`."""
    program("espeak-ng")
    run = tmp_path_factory.mktemp("voice")
    part = replace(voice.PARTS["train"], clips=40)
    parts = {"train": part, "valid": replace(part, clips=4, seed=2), "test": replace(part, clips=4, seed=3)}
    whole = voice.load_voice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_voice", lambda: whole(parts))
        train(presets.config("voice", out=run, epochs=5, model={**presets.VOICE.model, "hidden_size": 24}))
    export_run(run, run / "models/voice.onnx")
    return run


@pytest.fixture(scope="module")
def microphone(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears again and again: 0.7 s of a voice that no model knows, 0.7 s of a hiss."""
    program("espeak-ng")
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    spoken = speech.speak("one two three four", speech.Voice("en-gb-scotland", "m4", 50, 200))[
        : speech.RATE * 7 // 10
    ]
    hiss = 0.003 * np.random.default_rng(0).standard_normal(RATE * 14 // 10)
    times_s = np.arange(RATE * 7 // 10) / RATE
    hiss[: len(times_s)] += 0.5 * np.interp(times_s, np.arange(len(spoken)) / speech.RATE, spoken)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((hiss * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def browser(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory, microphone: Path
) -> Iterator[Browser]:
    flags = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        "--autoplay-policy=no-user-gesture-required",
    )
    with Browser(program("chromium"), tmp_path_factory.mktemp("profile"), *flags) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(start_server: Callable[..., ServerProcess], listener: Path) -> ServerProcess:
    return start_server(listener / "models", "--websocket-port", "0")


def begin(browser: Browser, page: str, url: str, model: str) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page, 900, 700, dark=False)
    browser.value(
        f"{{ const f = document.forms.form; f.url.value = {url!r}; f.model.value = {model!r}; f.requestSubmit() }}"
    )


def test_a_microphone_streams_through_a_model_and_the_outputs_are_its(
    browser: Browser,
    page: str,
    server: ServerProcess,
    listener: Path,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    begin(browser, page, f"ws://127.0.0.1:{port_of(server)}", "voice")
    assert eventually(lambda: browser.value("window.session?.outputs.length > 300")), browser.value(
        "document.getElementById('status').textContent"
    )
    with connect(server.target) as client:
        assert [each.model for each in client.sessions()] == ["voice"]
    browser.screenshot(tmp_path / "page.png")
    browser.value("document.getElementById('stop').click()")
    assert eventually(lambda: browser.value("session.ended !== null"))
    assert browser.value("[session.ended, session.error, session.dropped]") == [1000, None, 0]
    x = np.array(browser.value("session.sent"), np.float32).reshape(-1, voice.BLOCK)
    y = np.array(browser.value("session.outputs"), np.float32)
    assert 300 < len(x) == len(y) < 3000  # all that was sent is still there
    model, _ = load_run(listener)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)[None])[0][0].numpy()
    np.testing.assert_allclose(y, expected, atol=1e-4)
    # Half of the time somebody speaks, and the model hears when.
    loud = voice.spoken(x.ravel())
    assert 0.3 < loud.mean() < 0.7
    assert (loud == (y[:, 0] > 0)).mean() > 0.85
    said = browser.value("document.getElementById('said').value")
    assert said == ("speech" if y[-1, 0] > 0 else "silence")
    # Something is drawn, nothing outside is asked for, and nothing complains.
    drawn = "document.getElementById('plot').getContext('2d').getImageData(0, 0, 1200, 400).data.some(each => each)"
    assert browser.value(drawn)
    folder = page.rpartition("/")[0]
    assert all(each.startswith((folder, "data:")) for each in browser.requests), browser.requests
    assert browser.complaints == []


def test_the_page_says_why_a_session_was_refused(
    browser: Browser, page: str, server: ServerProcess, eventually: Eventually
) -> None:
    begin(browser, page, f"ws://127.0.0.1:{port_of(server)}", "nobody")
    told = "document.getElementById('status').textContent"
    assert eventually(lambda: "MODEL_NOT_FOUND" in browser.value(told))


def test_a_page_of_another_site_is_refused_by_the_server(
    browser: Browser, page: str, server: ServerProcess, eventually: Eventually
) -> None:
    # To the browser and the server, localhost and 127.0.0.1 are two sites.
    begin(browser, page, f"ws://localhost:{port_of(server)}", "voice")
    assert eventually(
        lambda: "--websocket-origins" in browser.value("document.getElementById('status').textContent")
    )
    assert browser.value("session.opened") is None
    assert any("403" in each for each in browser.complaints)
