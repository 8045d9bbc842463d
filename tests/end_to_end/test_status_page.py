"""The status page in a real browser: readable on phone and desk, dark and light, harmless whatever a model says."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from tests.support.browser import Browser
from tests.support.onnx_files import parsed, save

# What the file of a hostile model puts into texts about it: its output mixes the rows of a batch.
HOSTILE = "<img src=http://127.0.0.1:9/x onerror=alert(1)>&"
MIXES = """(float[n,2] x, float[n,2] h) => (float[n,2] y, float[n,2] h_next)
    { m = ReduceMax<axes = [0]>(x) y = Add(x, m) h_next = Identity(h) }"""


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    """A server on which a session has run and ended, and two live, one of them of a model that mixes rows."""
    models = tmp_path_factory.mktemp("models")
    hostile = parsed(MIXES)
    hostile.graph.node[1].output[0] = hostile.graph.output[0].name = HOSTILE
    save(hostile, models / "mixes.onnx")
    save(
        parsed(MIXES.replace("m = ReduceMax<axes = [0]>(x) y = Add(x, m)", "y = Neg(x)")),
        models / "plain.onnx",
    )
    return start_server(models)


@pytest.fixture(scope="module")
def worked(server: ServerProcess) -> Iterator[ServerProcess]:
    with connect(server.target) as client:
        with client.session("plain") as session:
            session.run(np.zeros((64, 2), np.float32))
        with client.session("plain") as one, client.session("mixes") as other:
            for session in (one, other):
                session.step(np.zeros(2, np.float32))
            yield server


@pytest.fixture(scope="module")
def browser(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(program("chromium"), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def url(server: ServerProcess) -> str:
    return server.metrics_url.removesuffix("metrics")


@pytest.mark.conformance
def test_the_page_shows_models_sessions_ends_and_what_the_proof_found(worked: ServerProcess) -> None:
    with urllib.request.urlopen(url(worked), timeout=60) as answer:
        page, headers = answer.read().decode(), answer.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    for text in (
        '<b class="good">ready</b>',
        "<h2>plain <small>version 1 · onnx · float32</small></h2>",
        "Proof: compared with each session alone and step by step",
        "one session a run: with several sessions in a run output &#x27;&lt;img src=",
        "<tr><td>active</td><td>2</td></tr>",
        "<tr><td>closed</td><td>1</td></tr>",
        '<polyline class="two"',
        "1 of 10000 state slots taken",
    ):
        assert text in page, text
    assert HOSTILE not in page
    assert "<img" not in page


def brightness(picture: np.ndarray[Any, Any]) -> float:
    return float(np.median(picture[..., :3]))


@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
def test_it_is_readable_in_light_and_dark_and_asks_nobody(
    width: int, worked: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    pictures = {}
    for dark in (False, True):
        browser.requests.clear()
        browser.complaints.clear()
        browser.open(url(worked), width, 800, dark=dark)
        # Nothing is wider than the screen, and no letter smaller than a phone shows well.
        assert browser.value("document.documentElement.scrollWidth") <= width
        sizes = "[...document.querySelectorAll('body *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert browser.value(f"Math.min(...{sizes})") >= 12
        assert (
            browser.value("document.querySelectorAll('img, script, iframe, link, object, form').length") == 0
        )
        assert HOSTILE in browser.value("document.body.textContent")
        assert browser.value("getComputedStyle(document.querySelector('section')).borderTopStyle") == "solid"
        assert browser.value("document.querySelectorAll('polyline').length") >= 2
        shot = browser.screenshot(tmp_path / f"{'dark' if dark else 'light'}.png")
        pictures[dark] = matplotlib.image.imread(shot)
        # A browser asks for the icon by itself; all else would be the page's.
        assert [each for each in browser.requests if not each.endswith("/favicon.ico")] == [url(worked)]
        assert not [each for each in browser.complaints if "favicon" not in each and "404" not in each]
    assert brightness(pictures[False]) > 0.8
    assert brightness(pictures[True]) < 0.3
    for picture in pictures.values():
        assert width - 20 < picture.shape[1] <= width  # with or without a scroll bar
        colours = (picture[..., :3] * 255).astype(int) @ (1 << 16, 1 << 8, 1)
        assert len(np.unique(colours)) > 50  # letters and lines, not a blank
    contrast = "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor] })()"
    ink, paper = ([float(part) for part in each[4:-1].split(",")] for each in browser.value(contrast))
    assert abs(sum(ink) - sum(paper)) > 400


def test_a_policy_forbids_all_that_the_page_does_not_need(worked: ServerProcess, browser: Browser) -> None:
    browser.open(url(worked), 800, 600, dark=False)
    browser.complaints.clear()
    script = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    picture = "const i = new Image(); i.src = '/metrics'; document.body.append(i)"
    style = "document.body.setAttribute('style', 'color: rgb(1, 2, 3)')"
    for attempt in (script, picture, style):
        browser.value(f"{{ {attempt} }}")
    assert browser.value("window.ran") is None
    assert browser.value("getComputedStyle(document.body).color") != "rgb(1, 2, 3)"
    assert len([text for text in browser.complaints if "Content Security Policy" in text]) == 3
