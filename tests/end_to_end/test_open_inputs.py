"""What no message brings, given at the opening or fed by the server, is each session's own, by every way there is."""

from __future__ import annotations

import asyncio
import queue
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.client import connect, connect_async
from streamcell.client.errors import InvalidInput, StreamCellError
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.onnx_files import parsed, save
from tests.support.waiting import waited

SESSIONS, STEPS, LANGUAGES = 16, 20, 5
Array = np.ndarray[Any, Any]

# h counts in the speaker's units, and the language's row is added: another session's values would show at once.
GRAPH = (
    "(float[b, t, 2] x, float[b, 2] speaker, int64[b] language, float[b, 2] h)"
    " => (float[b, t, 2] y, float[b, 2] h_next)"
    "{ table = Constant<value = float[5, 2] {10, -10, 20, -20, 30, -30, 40, -40, 50, -50}>()"
    " one = Constant<value = int64[1] {1}>() axis = Constant<value = int64 {1}>()"
    " last = Constant<value = int64 {-1}>() wide = Unsqueeze(speaker, one) row = Gather(table, language)"
    " rows = Unsqueeze(row, one) scaled = Mul(x, wide) sum = CumSum(scaled, axis) before = Unsqueeze(h, one)"
    " all = Add(sum, before) h_next = Gather<axis = 1>(all, last) y = Add(all, rows) }"
)
SIDECAR = """
layout = "batch_time"
outputs = ["y"]
inputs = ["x", { name = "speaker", at = "open" }, { name = "language", at = "open", default = 2 }]
[[states]]
input = "h"
output = "h_next"
"""
RATE = "(float[1, 2] x, int64 sr) => (float[1, 2] y) { r = Cast<to = 1>(sr) y = Div(x, r) }"
RATE_SIDECAR = """
layout = "batch"
outputs = ["y"]
inputs = ["x", { name = "sr", at = "open", batch_axis = "none" }]
"""
# The step's place and what came before it: the server feeds both.
WALK = (
    "(float[b, 12] x, int64[b] at, bool[b, 1] first) => (float[b, 12] y)"
    "{ axis = Constant<value = int64[1] {1}>() index = Cast<to = 1>(at) column = Unsqueeze(index, axis)"
    " lower = Sub(x, column) y = Where(first, x, lower) }"
)
WALK_SIDECAR = """
layout = "batch"
outputs = ["y"]
inputs = [
  { name = "x", context = 4 }, { name = "at", from = "step_index" }, { name = "first", from = "first_step" },
]
"""
SONG = (
    "(int64[b] token, float[b, 3] style, float[b, 3] h) => (float[b, 3] logits, float[b, 3] h_next)"
    "{ eye = Constant<value = float[3, 3] {2, 0, 0, 0, 2, 0, 0, 0, 2}>() sung = Gather(eye, token)"
    " h_next = Sub(h, sung) logits = Add(h_next, style) }"
)
SONG_SIDECAR = """
layout = "batch"
outputs = ["logits"]
inputs = ["token", { name = "style", at = "open" }]
[[states]]
input = "h"
output = "h_next"
[generation]
output = "logits"
input = "token"
head = "categorical"
encoding = "index"
start = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("given")
    save(parsed(GRAPH), made / "voice.onnx", SIDECAR)
    save(parsed(RATE), made / "rate.onnx", RATE_SIDECAR)
    save(parsed(SONG), made / "song.onnx", SONG_SIDECAR)
    save(parsed(WALK), made / "walk.onnx", WALK_SIDECAR)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, start_server: Any) -> ServerProcess:
    made: ServerProcess = start_server(folder, "--max-chunk", "4", "--max-sessions", "40")
    return made


def interleaved(sessions: list[Any], x: Array, seed: int) -> list[Array]:
    """The outputs of each session, x[row] sent in chunks of random sizes in random order."""
    rng = np.random.default_rng(seed)
    sent, got = [0] * len(sessions), [list[Array]() for _ in sessions]
    while waiting := [row for row in range(len(sessions)) if sent[row] < x.shape[1]]:
        turn = rng.permutation(waiting)[: int(rng.integers(1, len(sessions)))].tolist()
        for row in turn:
            steps = int(rng.integers(1, 7))
            sessions[row].send(x[row, sent[row] : sent[row] + steps])
            sent[row] += steps
        for row in turn:
            got[row].append(sessions[row].receive())
    for session in sessions:
        session.close()
    return [np.concatenate(each) for each in got]


class Voices:
    """Sequences with values of their own, and what ONNX Runtime makes of each alone."""

    def __init__(self, folder: Path, seed: int, count: int = SESSIONS) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((count, STEPS, 2)).astype(np.float32)
        self.speaker = rng.standard_normal((count, 2)).astype(np.float32)
        self.language = rng.integers(0, LANGUAGES, count)
        alone = ort.InferenceSession(folder / "voice.onnx", providers=["CPUExecutionProvider"])
        self.y = np.concatenate(
            [
                alone.run(
                    ["y"],
                    {
                        "x": self.x[[row]],
                        "speaker": self.speaker[[row]],
                        "language": self.language[[row]],
                        "h": np.zeros((1, 2), np.float32),
                    },
                )[0]
                for row in range(count)
            ]
        )

    def given(self, row: int | slice = slice(None)) -> dict[str, Any]:
        return {"speaker": self.speaker[row], "language": self.language[row]}

    def check(self, y: Array, row: Any = slice(None)) -> None:
        np.testing.assert_allclose(y, self.y[row], rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
def test_sessions_interleaved_at_random_chunk_sizes_keep_their_own(
    server: ServerProcess, folder: Path
) -> None:
    voices = Voices(folder, 1)
    with connect(server.target) as client:
        sessions = [client.session("voice", inputs=voices.given(row)) for row in range(SESSIONS)]
        for row, y in enumerate(interleaved(sessions, voices.x, 2)):
            voices.check(y, row)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


@pytest.mark.conformance
def test_what_the_server_feeds_is_each_sessions_own(server: ServerProcess, folder: Path) -> None:
    x = np.random.default_rng(3).standard_normal((SESSIONS, STEPS, 8)).astype(np.float32)
    alone = ort.InferenceSession(folder / "walk.onnx", providers=["CPUExecutionProvider"])
    with connect(server.target) as client:
        got = interleaved([client.session("walk") for _ in range(SESSIONS)], x, 4)
        with client.pool("walk", SESSIONS) as pool:
            again = pool.run(x[:, :7])
    for row in range(SESSIONS):
        line = np.concatenate([np.zeros(4, np.float32), *x[row]])
        whole = np.array([line[8 * t : 8 * t + 12] for t in range(STEPS)])
        index = np.arange(STEPS)
        (y,) = alone.run(None, {"x": whole, "at": index, "first": (index == 0)[:, None]})
        np.testing.assert_allclose(got[row], y, rtol=1e-6)
        np.testing.assert_allclose(again[row], y[:7], rtol=1e-6)


def test_an_asyncio_client_gives_the_same_and_defaults_hold(server: ServerProcess, folder: Path) -> None:
    voices = Voices(folder, 3, 4)

    async def stream(client: Any, row: int) -> Array:
        async with client.session("voice", inputs=voices.given(row)) as session:
            return np.asarray(await session.run(voices.x[row]))

    async def all_of_them() -> None:
        async with connect_async(server.target) as client:
            voices.check(np.array(await asyncio.gather(*(stream(client, row) for row in range(4)))))
            voices.check(await client.predict("voice", voices.x, open_inputs=voices.given()))
            async with client.pool("voice", 3, inputs=voices.given(slice(3))) as pool:
                voices.check(await pool.run(voices.x[:3]), slice(3))
                await pool.open_members(inputs=voices.given(slice(3, 4)))
                voices.check(await pool.run(voices.x[3:], [3]), slice(3, 4))

    asyncio.run(all_of_them())
    with connect(server.target) as client, client.session("voice", inputs={"speaker": [0.0, 0.0]}) as session:
        np.testing.assert_array_equal(session.step([1.0, 1.0]), [30, -30])


def test_members_of_a_pool_keep_theirs_through_a_reset_and_later_ones_have_others(
    server: ServerProcess, folder: Path
) -> None:
    voices = Voices(folder, 4)
    with connect(server.target) as client:
        given = {name: value[:12] for name, value in voices.given().items()}
        with client.pool("voice", 12, inputs=given) as pool:
            voices.check(pool.run(voices.x[:12, :3]), (slice(12), slice(3)))
            with pytest.raises(
                InvalidInput, match=r"'speaker'.*expected shape \[4, 2\], got \[4, 3\]"
            ) as caught:
                pool.open_members(4, inputs={"speaker": np.zeros((4, 3), np.float32)})
            assert caught.value.reason == "WRONG_SHAPE"
            with pytest.raises(InvalidInput, match="send it with the opening"):
                pool.open_members(4)
            later = {name: value[12:] for name, value in voices.given().items()}
            assert pool.open_members(4, inputs=later).tolist() == [12, 13, 14, 15]
            pool.reset([2, 5])
            odd = [0, 2, 5, 13]
            y = pool.run(np.concatenate([voices.x[[0], 3:7], voices.x[[2, 5, 13], :4]]), odd)
            voices.check(y[0], (0, slice(3, 7)))
            voices.check(y[1:], ([2, 5, 13], slice(4)))
        with pytest.raises(InvalidInput, match="speaker") as caught:
            client.pool("voice", 2, inputs={"speaker": np.zeros(2, np.float32)})
        assert caught.value.reason == "WRONG_SHAPE"


def test_predict_gives_each_row_its_own(server: ServerProcess, folder: Path) -> None:
    voices = Voices(folder, 5)
    with connect(server.target) as client:
        voices.check(client.predict("voice", voices.x, open_inputs=voices.given()))
        voices.check(client.predict("voice", voices.x[3], open_inputs=voices.given(3)), 3)
        with pytest.raises(InvalidInput, match="speaker") as caught:
            client.predict("voice", voices.x[3])
        assert caught.value.reason == "OPEN_INPUT_MISSING"


def test_a_value_without_a_batch_axis_is_each_sessions_own_too(server: ServerProcess) -> None:
    with connect(server.target) as client:
        rates = [8000, 16000, 44100]
        sessions = [client.session("rate", inputs={"sr": rate}) for rate in rates]
        for _ in range(2):
            for rate, session in zip(rates, sessions, strict=True):
                np.testing.assert_allclose(session.step([1.0, 2.0]), np.array([1, 2]) / rate, rtol=1e-6)
        for session in sessions:
            session.close()


@pytest.mark.conformance
def test_generations_and_beams_from_the_opening_on_follow_it(server: ServerProcess) -> None:
    """A beam reads its session's own values although that has not run a step."""
    with connect(server.target) as client:
        for style in np.random.default_rng(9).standard_normal((4, 3)).astype(np.float32):
            token, h, sung = 0, np.zeros(3), []
            for _ in range(6):
                h[token] -= 2
                token = int(np.argmax(h + style))
                sung.append(token)
            with client.session("song", inputs={"style": style}) as session:
                assert session.beam_search(6, width=1)[0].classes == tuple(sung)
                assert [int(step.chosen) for step in session.generate(6)] == sung


def test_get_model_tells_what_is_needed(server: ServerProcess) -> None:
    with connect(server.target) as client:
        speaker, language = client.model("voice").open_inputs
        assert (speaker.name, speaker.dtype, speaker.step_shape, speaker.optional) == (
            "speaker", "float32", (2,), False,
        )  # fmt: skip
        assert (language.name, language.dtype, language.step_shape, language.optional) == (
            "language", "int64", (), True,
        )  # fmt: skip
    with grpc.insecure_channel(server.target) as channel:
        told = rpc.StreamCellStub(channel).GetModel(pb.GetModelRequest(model="voice")).model
        assert [(each.low, each.high) for each in told.open_inputs[1].index_ranges] == [(0, 4)]
    with triton.InferenceServerClient(server.target) as client:
        inputs = client.get_model_metadata("voice").inputs
        assert [(each.name, each.datatype, list(each.shape)) for each in inputs] == [
            ("x", "FP32", [-1, 2]), ("speaker", "FP32", [-1, 2]), ("language", "INT64", [-1]),
        ]  # fmt: skip
        assert [each.optional for each in client.get_model_config("voice").config.input] == [
            False,
            True,
            True,
        ]


def streamed(server: ServerProcess, *options: str) -> Any:
    arguments = ["stream", "voice", "-", "--target", server.target, "--no-header", *options]
    return CliRunner().invoke(app, arguments, input="1,2\n0,0\n")


def test_the_command_line_gives_numbers_lists_and_files(server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "me.npy", np.array([1.0, 2.0]))
    for speaker in ("[1, 2]", str(tmp_path / "me.npy")):
        result = streamed(server, "--open", f"speaker={speaker}", "--open", "language=0")
        assert (result.exit_code, result.stderr) == (0, "")
        assert [list(map(float, line.split(","))) for line in result.stdout.split()] == [[11, -6], [11, -6]]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("speaker", "expected NAME=VALUE or NAME=FILE.npy"),
        ("tongue=1", "the model takes no 'tongue' when it opens; it takes speaker, language"),
        ("speaker=[1, 2, 3]", "expected shape [2], got [3]"),
        ("speaker=me", "expected a number, a JSON list or an .npy file"),
        ("speaker=missing.npy", "missing.npy: No such file"),
        ("language=1.5", "int64 cannot hold 1.5"),
        ('speaker="me"', "expected numbers"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_an_option(
    server: ServerProcess, option: str, text: str
) -> None:
    result = streamed(server, "--open", option)
    assert result.exit_code == 2
    assert text in result.stderr
    twice = streamed(server, "--open", "language=1", "--open", "language=1")
    assert "'language' is given twice" in twice.stderr


def test_the_command_line_says_which_file_is_no_npy(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "me.npy"
    with path.open("wb") as file:
        np.savez(file, me=np.ones(2))
    for content in (path.read_bytes(), b""):
        path.write_bytes(content)
        result = streamed(server, "--open", f"speaker={path}")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"streamcell stream: --open speaker={path}: ")


FINE = np.ones(2, np.float32)
WRONG = {
    "missing": ({}, "OPEN_INPUT_MISSING", r"speaker float32\[2\] when they open; send it with the opening"),
    "unknown": (
        {"speaker": FINE, "accent": 1},
        "OPEN_INPUT_UNKNOWN",
        r"'accent'.*speaker float32\[2\], language",
    ),
    "dtype": ({"speaker": np.ones(2)}, "WRONG_DTYPE", "expected float32, got float64; convert it"),
    "shape": ({"speaker": np.ones((2, 1), np.float32)}, "WRONG_SHAPE", r"expected shape \[2\], got \[2, 1\]"),
    "NaN": (
        {"speaker": [1.0, float("nan")]},
        "NON_FINITE_INPUT",
        "'speaker': expected finite values, got nan",
    ),
    "no language": ({"speaker": FINE, "language": 5}, "INDEX_OUT_OF_RANGE", "an index from 0 to 4, got 5"),
    "text": ({"speaker": "me"}, "WRONG_DTYPE", "expected numbers, got <U2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name_and_takes_no_slot(server: ServerProcess, case: str) -> None:
    inputs, reason, text = WRONG[case]
    with connect(server.target) as client:
        with pytest.raises(InvalidInput, match=text) as caught, client.session("voice", inputs=inputs):
            pass
        assert caught.value.reason == reason
        with pytest.raises(StreamCellError, match="no input 'q' is given at the opening"):
            client.session("rate", inputs={"sr": 1, "q": 2})
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


@pytest.mark.conformance
def test_bytes_that_are_too_few_and_values_that_come_twice(server: ServerProcess) -> None:
    one = pb.OpenInput(name="speaker", value=FINE.tobytes())
    with grpc.insecure_channel(server.target) as channel:
        for inputs, text in (
            ([pb.OpenInput(name="speaker", value=b"1234")], "takes 8 bytes, got 4"),
            ([one, one], "comes twice"),
        ):
            first = pb.StreamRequest(open=pb.OpenSession(model="voice", inputs=inputs))
            with pytest.raises(grpc.RpcError, match=text):
                next(rpc.StreamCellStub(channel).Stream(iter([first])))
        frames = iter([pb.FrameRequest(open=pb.OpenFrames(model="voice"), open_inputs=[one])])
        with pytest.raises(grpc.RpcError, match="the frame opens none"):
            next(rpc.StreamCellStub(channel).StreamFrames(frames))


def tensors(voices: Voices, row: int, steps: slice, *, opening: bool) -> list[triton.InferInput]:
    def one(name: str, value: Array, datatype: str) -> triton.InferInput:
        tensor = triton.InferInput(name, list(value.shape), datatype)
        tensor.set_data_from_numpy(value)
        return tensor

    made = [one("x", voices.x[row, steps][None], "FP32")]
    if opening:
        made.insert(row % 2, one("speaker", voices.speaker[[row]][: row + 1], "FP32"))
        made.append(one("language", voices.language[[row]], "INT64"))
    return made


@pytest.mark.conformance
def test_tritons_client_gives_them_with_the_start_of_a_sequence(server: ServerProcess, folder: Path) -> None:
    voices = Voices(folder, 6, 8)
    answers: queue.Queue[Any] = queue.Queue()
    got: dict[str, list[Array]] = {}
    with triton.InferenceServerClient(server.target) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for begin in range(0, STEPS, 5):
            for row in range(8):
                client.async_stream_infer(
                    "voice", tensors(voices, row, slice(begin, begin + 5), opening=not begin), request_id=str(row),
                    sequence_id=row + 1, sequence_start=not begin, sequence_end=begin + 5 == STEPS,
                )  # fmt: skip
        for _ in range(8 * STEPS // 5):
            result, error = answers.get(timeout=60)
            assert error is None
            got.setdefault(result.get_response().id, []).append(result.as_numpy("y")[0])
        for row in range(8):
            voices.check(np.concatenate(got[str(row)]), row)
        client.stop_stream()


def test_a_request_without_a_sequence_gives_each_row_its_own(server: ServerProcess, folder: Path) -> None:
    voices = Voices(folder, 7, 6)
    with triton.InferenceServerClient(server.target) as client:
        inputs = []
        for name, value, datatype in (
            ("x", voices.x, "FP32"), ("speaker", voices.speaker, "FP32"), ("language", voices.language, "INT64"),
        ):  # fmt: skip
            inputs.append(triton.InferInput(name, list(value.shape), datatype))
            inputs[-1].set_data_from_numpy(value)
        voices.check(client.infer("voice", inputs).as_numpy("y"))


def test_tritons_client_is_told_what_is_wrong(server: ServerProcess, folder: Path) -> None:
    voices = Voices(folder, 8, 2)
    with triton.InferenceServerClient(server.target) as client:

        def infer(*, opening: bool, start: bool) -> None:
            inputs = tensors(voices, 0, slice(1), opening=opening)
            client.infer("voice", inputs, sequence_id=99, sequence_start=start)

        with pytest.raises(triton.InferenceServerException, match=r"speaker float32\[2\] when they open"):
            infer(opening=False, start=True)
        infer(opening=True, start=True)
        infer(opening=False, start=False)
        with pytest.raises(triton.InferenceServerException, match="send it with its START request alone"):
            infer(opening=True, start=False)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)
