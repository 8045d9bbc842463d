"""Files that are no models, or lie about what they are: a report with the file's name, and the others served."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import helper

from streamcell.card import METADATA_KEY, ModelCard, Signature, Tensor, write_card
from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load_all
from streamcell.service.load_errors import MOST_TEXT, ModelLoadError, RepositoryError
from streamcell.service.repository.model_file import discover
from streamcell.service.settings import Settings

SIDECAR = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "h"\noutput = "h_next"\n'
ADD = "(float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] h_next) { y = Add(x, h) h_next = Identity(y) }"
Make = Callable[[Path, Any, Any], None]


def card_of(model: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
        layout="batch",
    )
    write_card(model, ModelCard(name="m", kind="M", signature=signature.model_copy(update=changes)))
    return model


def fifo(at: Path, model_of: Any, save: Any) -> None:
    os.mkfifo(at / "bad.onnx")


def fifo_sidecar(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at / "bad.onnx")
    os.mkfifo(at / "bad.toml")


def fifo_version(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad" / "1").mkdir(parents=True)
    os.mkfifo(at / "bad" / "1" / "model.onnx")


def sock(at: Path, model_of: Any, save: Any) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(at / "bad.onnx"))


def broken_link(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad.onnx").symlink_to("nothing")


def circle(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad.onnx").symlink_to("bad.onnx")


def out_of_the_folder(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad.onnx").symlink_to(save(model_of(ADD), at.parent / "elsewhere" / "m.onnx"))


def folder_out_of_it(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at.parent / "elsewhere" / "1" / "model.onnx")
    (at / "bad").symlink_to(at.parent / "elsewhere")


def sidecar_out_of_it(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at / "bad.onnx")
    (at.parent / "passwd").write_text("root:x:0:0")
    (at / "bad.toml").symlink_to(at.parent / "passwd")


def weights_at(location: str) -> Make:
    def make(at: Path, model_of: Any, save: Any) -> None:
        model = model_of(ADD)
        attribute = helper.make_tensor("w", onnx.TensorProto.FLOAT, [3], bytes(12), raw=True)
        attribute.ClearField("raw_data")
        attribute.data_location = onnx.TensorProto.EXTERNAL
        attribute.external_data.add(key="location", value=location)
        # In a node, not an initializer.
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=attribute))
        model.graph.node[1].input[1] = "w"
        model.graph.node[1].input[0] = "h"
        (at / "bad.onnx").write_bytes(model.SerializeToString())

    return make


def weights_in_a_link(at: Path, model_of: Any, save: Any) -> None:
    (at.parent / "secret").write_bytes(bytes(12))
    (at / "weights").symlink_to(at.parent / "secret")
    weights_at("weights")(at, model_of, save)


def weights_in_a_pipe(at: Path, model_of: Any, save: Any) -> None:
    os.mkfifo(at / "weights")
    weights_at("weights")(at, model_of, save)


def zero_bytes(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad.onnx").touch()


def malformed(at: Path, model_of: Any, save: Any) -> None:
    (at / "bad.onnx").write_bytes(model_of(ADD).SerializeToString()[:-20])


def nested_protobuf(at: Path, model_of: Any, save: Any) -> None:
    data = b""
    for _ in range(5000):  # a graph in a node's attribute in a graph …
        for field in (6, 5, 1):
            data = bytes([field << 3 | 2]) + _varint(len(data)) + data
    (at / "bad.onnx").write_bytes(b"\x3a" + _varint(len(data)) + data)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def huge(at: Path, model_of: Any, save: Any) -> None:
    with (at / "bad.onnx").open("wb") as file:
        file.truncate(1 << 40)


def bytes_in_its_name(at: Path, model_of: Any, save: Any) -> None:
    with open(os.fsencode(at) + b"/\xff\x1b[31m.onnx", "wb") as file:
        file.write(model_of(ADD).SerializeToString())


def bytes_in_a_name_inside(at: Path, model_of: Any, save: Any) -> None:
    data = model_of(ADD.replace("y", "yyyy")).SerializeToString()
    (at / "bad.onnx").write_bytes(data.replace(b"yyyy", b"\xff\xfe\x80\x81"))


def deep_toml(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at / "bad.onnx", f"a = {'[' * 20_000}{']' * 20_000}")


def large_toml(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at / "bad.onnx", f"# {'x' * (1 << 20)}\n{SIDECAR}")


def number_without_end(at: Path, model_of: Any, save: Any) -> None:
    save(model_of(ADD), at / "bad.onnx", f"max_batch = {'9' * 100_000}\n{SIDECAR}")


def large_card(at: Path, model_of: Any, save: Any) -> None:
    model = card_of(model_of(ADD))
    model.metadata_props[0].value = model.metadata_props[0].value.replace("{", "{" + " " * (1 << 20), 1)
    save(model, at / "bad.onnx")


def deep_card(at: Path, model_of: Any, save: Any) -> None:
    model = model_of(ADD)
    model.metadata_props.add(key=METADATA_KEY, value='{"config": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001)
    save(model, at / "bad.onnx")


def dtype_that_is_none(at: Path, model_of: Any, save: Any) -> None:
    model = model_of(ADD)
    model.graph.input[0].type.tensor_type.elem_type = 4711
    save(model, at / "bad.onnx", SIDECAR + STATE)


OPENED: dict[str, tuple[Make, str, str]] = {
    "a pipe": (fifo, "bad.onnx", "expected a file, found a named pipe"),
    "a pipe for a sidecar": (fifo_sidecar, "bad.toml", "expected a file, found a named pipe"),
    "a pipe for a version": (fifo_version, "model.onnx", "expected a file, found a named pipe"),
    "a socket": (sock, "bad.onnx", "expected a file, found a socket"),
    "a link to nothing": (broken_link, "bad.onnx", "cannot be read"),
    "a link to itself": (circle, "bad.onnx", "cannot be read"),
    "a link out of the folder": (out_of_the_folder, "bad.onnx", "leads out of the folder of models"),
    "a folder out of it": (folder_out_of_it, "bad", "leads out of the folder of models"),
    "a sidecar out of it": (sidecar_out_of_it, "bad.toml", "leads out of the folder of models"),
    "weights up the tree": (weights_at("../../../../etc/passwd"), "bad.onnx", "external data cannot be read"),
    "weights at the root": (weights_at("/etc/passwd"), "bad.onnx", "external data cannot be read"),
    "weights in a link": (weights_in_a_link, "weights", "leads out of the folder of models"),
    "weights in a pipe": (weights_in_a_pipe, "weights", "expected a file, found a named pipe"),
    "no bytes": (zero_bytes, "bad.onnx", "not an ONNX file"),
    "malformed protobuf": (malformed, "bad.onnx", "not an ONNX file"),
    "nested protobuf": (nested_protobuf, "bad.onnx", "not an ONNX file"),
    "a terabyte": (huge, "bad.onnx", "an ONNX file has at most"),
    "bytes in its name": (bytes_in_its_name, r"\udcff\x1b[31m.onnx", "cannot be a model's name"),
    "bytes in a name inside": (bytes_in_a_name_inside, "bad.onnx", ""),
    "deep TOML": (deep_toml, "bad.toml", "nested too deeply"),
    "large TOML": (large_toml, "bad.toml", "a sidecar has at most 1048576 bytes"),
    "a number without end": (number_without_end, "bad.toml", "not valid TOML"),
    "a large card": (large_card, "bad.onnx", "card has at most 1048576 bytes"),
    "a deep card": (deep_card, "bad.onnx", "card is not valid"),
    "a dtype that is none": (dtype_that_is_none, "bad.onnx", ""),
}


@pytest.mark.parametrize(("make", "name", "text"), OPENED.values(), ids=OPENED.keys())
def test_what_cannot_be_opened_is_reported(
    make: Make, name: str, text: str, tmp_path: Path, model_of: Any, save: Any
) -> None:
    folder = tmp_path / "models"
    save(model_of(ADD), folder / "good.onnx", SIDECAR + STATE)
    make(folder, model_of, save)
    with pytest.raises(RepositoryError) as caught:
        discover(folder)
    (error,) = caught.value.errors
    assert str(error).startswith(f"{folder}/"), error
    assert f"{name}: " in str(error)
    assert text in str(error)
    said = str(caught.value)
    assert said.startswith(f"{folder}: 1 model cannot be served\n- {error}")
    assert len(said.encode()) < 2 * MOST_TEXT


def unknown_operator(at: Path, model_of: Any, save: Any) -> None:
    model = model_of(ADD)
    model.graph.node[0].op_type = "Divine"
    save(model, at / "bad.onnx", SIDECAR + STATE)


def no_kernel(at: Path, model_of: Any, save: Any) -> None:
    text = (
        "(double[t, n, 3] x, double[1, n, 4] h) => (double[t, 1, n, 4] y, double[1, n, 4] h_next)"
        " { y, h_next = RNN <hidden_size = 4> (x, W, R, , , h) }"
    )
    model = model_of(text, W=np.zeros((1, 4, 3)), R=np.zeros((1, 4, 4)))
    side = 'layout = "time_batch"\ninputs = ["x"]\noutputs = [{ name = "y", step_shape = [1, 4] }]\n'
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1
    save(model, at / "bad.onnx", side + STATE + "batch_axis = 1\n")


def state_bomb(at: Path, model_of: Any, save: Any) -> None:
    model = model_of(ADD.replace("float[n, 3] h", f"float[n, {1 << 40}] h"))
    save(model, at / "bad.onnx", SIDECAR + STATE)


def state_overflow(at: Path, model_of: Any, save: Any) -> None:
    big = ", ".join([str(1 << 62)] * 4)
    model = model_of(ADD.replace("float[n, 3] h", f"float[n, {big}] h"))
    save(model, at / "bad.onnx", SIDECAR + STATE)


def step_bomb(at: Path, model_of: Any, save: Any) -> None:
    save(
        model_of(f"(int64[n, {1 << 40}] x) => (int64[n, {1 << 40}] y) {{ y = Identity(x) }}"),
        at / "bad.onnx",
        SIDECAR,
    )


def output_bomb(at: Path, model_of: Any, save: Any) -> None:
    model = model_of(
        "(float[n, 3] x) => (float[n, 3] y)"
        " { b = ConstantOfShape(size) c = ReduceMax <keepdims = 0> (b) y = Add(x, c) }",
        size=np.array([1 << 40]),
    )
    save(model, at / "bad.onnx", SIDECAR)


def shapes_that_lie(at: Path, model_of: Any, save: Any) -> None:
    model = model_of("(float[n, 3] x) => (float[n, 3] y) { y = MatMul(x, w) }", w=np.ones((3, 3), np.float32))
    model.graph.initializer[0].dims[:] = [3, 1 << 61]
    save(model, at / "bad.onnx", SIDECAR)


def external_length_lies(at: Path, model_of: Any, save: Any) -> None:
    (at / "weights").write_bytes(struct.pack("<3f", 1, 2, 3))
    model = model_of("(float[n, 3] x) => (float[n, 3] y) { y = Add(x, w) }", w=np.ones(3, np.float32))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "4611686018427387904"), ("length", str(1 << 62))):
        tensor.external_data.add(key=key, value=value)
    (at / "bad.onnx").write_bytes(model.SerializeToString())
    (at / "bad.toml").write_text(SIDECAR)


def function_of_itself(at: Path, model_of: Any, save: Any) -> None:
    model = model_of("(float[n, 3] x) => (float[n, 3] y) { y = Neg(x) }")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    call = helper.make_node("F", ["a"], ["b"], domain="local")
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], [call], opsets))
    model.opset_import.append(opsets[1])
    model.graph.node[0].op_type, model.graph.node[0].domain = "F", "local"
    save(model, at / "bad.onnx", SIDECAR)


LOADED: dict[str, tuple[Make, str]] = {
    "an unknown operator": (unknown_operator, "Divine"),
    "an operator without a kernel": (no_kernel, "RNN"),
    "a state of 2^40 elements": (state_bomb, "too little memory"),
    "a state whose size overflows": (state_overflow, "too little memory"),
    "a step of 2^40 elements": (step_bomb, "too little memory"),
    "a value of 2^40 elements": (output_bomb, ""),
    "a weight whose shape lies": (shapes_that_lie, ""),
    "external data whose length lies": (external_length_lies, ""),
    "a function that calls itself": (function_of_itself, ""),
}


@pytest.mark.parametrize(("make", "text"), LOADED.values(), ids=LOADED.keys())
def test_what_cannot_be_loaded_is_reported(
    make: Make, text: str, tmp_path: Path, model_of: Any, save: Any
) -> None:
    save(model_of(ADD), tmp_path / "good.onnx", SIDECAR + STATE)
    make(tmp_path, model_of, save)
    with pytest.raises(RepositoryError) as caught:
        load_all(discover(tmp_path), Settings.load(models=tmp_path), Device(), lambda: None)
    (error,) = caught.value.errors
    assert str(error).startswith(f"{tmp_path / 'bad.onnx'}: ")
    assert text in str(error)
    assert len(str(error)) < 2 * MOST_TEXT


def test_too_little_memory_is_told_with_numbers_and_what_to_set(
    tmp_path: Path, model_of: Any, save: Any
) -> None:
    wide = ADD.replace("3]", "1000000]")
    save(model_of(wide), tmp_path / "wide.onnx", SIDECAR + STATE)
    settings = Settings.load(models=tmp_path, max_sessions=2_000_000, max_batch=2)
    with pytest.raises(
        ModelLoadError,
        match=r"wide\.onnx: too little memory: .* are available, and the model would take 7\.\d+ TiB: 7\.\d+ TiB for "
        r"the states of 2000000 sessions, .* set --max-sessions to \d+ or less, or give the server more memory",
    ):
        load_all(discover(tmp_path), settings, Device(), lambda: None)


def test_a_server_with_all_of_them_ends_with_one_report(
    frontends: int, tmp_path: Path, model_of: Any, save: Any
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save(model_of(ADD), folder / "good.onnx", SIDECAR + STATE)
    for make in (fifo_version, deep_toml, bytes_in_its_name):
        make(folder, model_of, save)
    server = ServerProcess(folder, "--frontends", str(frontends))
    assert server.process.wait(60) == 1
    server.stop()
    said = "".join(server.said)
    assert "3 models cannot be served" in said
    assert "Traceback" not in said
    for make in (unknown_operator, state_bomb):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder, model_of, save)
        server = ServerProcess(folder, "--frontends", str(frontends))
        assert server.process.wait(60) == 1
        server.stop()
        said = "".join(server.said)
        assert f"{folder / 'bad.onnx'}: " in said
        assert "Traceback" not in said


def test_links_within_the_folder_work_as_kubernetes_makes_them(
    tmp_path: Path, model_of: Any, save: Any
) -> None:
    """A volume's files are links to links into a folder of dots; the folder itself may be a link too."""
    mounted = tmp_path / "volume"
    save(model_of(ADD), mounted / "..2026_01" / "m.onnx", SIDECAR + STATE)
    (mounted / "..data").symlink_to("..2026_01")
    for name in ("m.onnx", "m.toml"):
        (mounted / name).symlink_to(f"..data/{name}")
    (tmp_path / "models").symlink_to(mounted)
    (file,) = discover(tmp_path / "models")
    assert file.load().graph.node


def test_links_out_of_the_folder_are_followed_where_that_is_allowed(
    tmp_path: Path, model_of: Any, save: Any
) -> None:
    save(model_of(ADD), tmp_path / "elsewhere" / "m.onnx", SIDECAR + STATE)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("m.onnx", "m.toml"):
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    save(model_of(ADD), tmp_path / "elsewhere" / "n" / "1" / "model.onnx", SIDECAR + STATE)
    (folder / "n").symlink_to(tmp_path / "elsewhere" / "n")
    assert [file.name for file in discover(folder, follow_links=True)] == ["m", "n"]


@pytest.mark.parametrize("kind", ["poll", "explicit"])
def test_model_control_goes_on_whatever_is_put_into_the_folder(
    kind: str, start_server: Any, eventually: Any, tmp_path: Path, model_of: Any, save: Any
) -> None:
    folder = tmp_path / "models"
    good = ADD
    save(model_of(good), folder / "good.onnx", SIDECAR + STATE)
    flags = ["--model-poll-s", "0.1"] if kind == "poll" else ["--load-model", "good"]
    server = start_server(folder, "--model-control", kind, *flags)
    makes = [make for make, *_ in OPENED.values()] + [make for make, _ in LOADED.values()]
    for number, make in enumerate(makes):
        own = tmp_path / str(number)
        (own / "models").mkdir(parents=True)
        make(own / "models", model_of, save)
        for entry in sorted((own / "models").iterdir()):
            to = f"bad{number}{entry.suffix}" if entry.stem == "bad" else entry.name
            if not os.path.lexists(folder / to):
                os.rename(entry, folder / to)
    with connect(server.target) as client, client.session("good") as session:
        assert (session.step(np.ones(3, np.float32)) == 1).all()
        if kind == "poll":
            save(model_of(good), folder / "zulu.onnx", SIDECAR + STATE)
            assert eventually(lambda: "zulu" in {model.name for model in client.models()})
            count = server.metric("streamcell_model_load_failures_total")
            save(model_of(good), folder / "zulu2.onnx", SIDECAR + STATE)
            assert eventually(lambda: "zulu2" in {model.name for model in client.models()})
            # What has not changed is not tried again.
            assert server.metric("streamcell_model_load_failures_total") == count
        else:
            with tritonclient.grpc.InferenceServerClient(server.target) as triton:
                assert len(triton.get_model_repository_index().models) > 10
                for number in range(len(makes)):
                    with pytest.raises(tritonclient.grpc.InferenceServerException, match=f"bad{number}"):
                        triton.load_model(f"bad{number}")
        assert (session.step(np.ones(3, np.float32)) == 2).all()
    lines = [line for line in server.log if "Traceback" in str(line) or "exception" in line]
    assert not lines
    assert not [line for line in server.said if "Traceback" in line]


def test_a_file_that_is_still_being_written_is_tried_again_when_it_has_changed(
    start_server: Any, eventually: Any, tmp_path: Path, model_of: Any, save: Any
) -> None:
    folder = tmp_path / "models"
    save(model_of(ADD), folder / "good.onnx", SIDECAR + STATE)
    server = start_server(folder, "--model-control", "poll", "--model-poll-s", "0.05")
    table = np.zeros((1000, 1000), np.float32)
    model = model_of(
        "(float[n, 3] x) => (float[n, 3] y) { t = ReduceMax <keepdims = 0> (w) y = Add(x, t) }", w=table
    )
    data = model.SerializeToString()
    failures = "streamcell_model_load_failures_total"
    with connect(server.target) as client, (folder / "slow.onnx").open("wb") as file:
        (folder / "slow.toml").write_text(SIDECAR)
        file.write(data[: len(data) // 2])
        file.flush()
        assert eventually(lambda: server.metric(failures, model="slow") >= 1)
        tried = server.metric(failures, model="slow")
        save(model_of(ADD), folder / "after.onnx", SIDECAR + STATE)
        assert eventually(lambda: "after" in {model.name for model in client.models()})
        assert server.metric(failures, model="slow") == tried
        file.write(data[len(data) // 2 :])
        file.flush()
        assert eventually(lambda: "slow" in {model.name for model in client.models()})
        np.testing.assert_array_equal(
            client.predict("slow", np.ones((1, 1, 3), np.float32)), np.ones((1, 1, 3))
        )
