"""Files that are no models, or lie about what they are: each function makes one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from streamcell.card import METADATA_KEY, ModelCard, Signature, Tensor, write_card
from tests.support.onnx_files import parsed, save

SIDECAR = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "h"\noutput = "h_next"\n'
ADD = "(float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] h_next) { y = Add(x, h) h_next = Identity(y) }"
Make = Callable[[Path], None]


def card_of(model: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
        layout="batch",
    )
    write_card(model, ModelCard(name="m", kind="M", signature=signature.model_copy(update=changes)))
    return model


def fifo(at: Path) -> None:
    os.mkfifo(at / "bad.onnx")


def fifo_sidecar(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx")
    os.mkfifo(at / "bad.toml")


def fifo_version(at: Path) -> None:
    (at / "bad" / "1").mkdir(parents=True)
    os.mkfifo(at / "bad" / "1" / "model.onnx")


def sock(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(at / "bad.onnx"))


def broken_link(at: Path) -> None:
    (at / "bad.onnx").symlink_to("nothing")


def circle(at: Path) -> None:
    (at / "bad.onnx").symlink_to("bad.onnx")


def out_of_the_folder(at: Path) -> None:
    (at / "bad.onnx").symlink_to(save(parsed(ADD), at.parent / "elsewhere" / "m.onnx"))


def folder_out_of_it(at: Path) -> None:
    save(parsed(ADD), at.parent / "elsewhere" / "1" / "model.onnx")
    (at / "bad").symlink_to(at.parent / "elsewhere")


def sidecar_out_of_it(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx")
    (at.parent / "passwd").write_text("root:x:0:0")
    (at / "bad.toml").symlink_to(at.parent / "passwd")


def weights_at(location: str) -> Make:
    def make(at: Path) -> None:
        model = parsed(ADD)
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


def weights_in_a_link(at: Path) -> None:
    (at.parent / "secret").write_bytes(bytes(12))
    (at / "weights").symlink_to(at.parent / "secret")
    weights_at("weights")(at)


def weights_in_a_pipe(at: Path) -> None:
    os.mkfifo(at / "weights")
    weights_at("weights")(at)


def zero_bytes(at: Path) -> None:
    (at / "bad.onnx").touch()


def malformed(at: Path) -> None:
    (at / "bad.onnx").write_bytes(parsed(ADD).SerializeToString()[:-20])


def nested_protobuf(at: Path) -> None:
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


def huge(at: Path) -> None:
    with (at / "bad.onnx").open("wb") as file:
        file.truncate(1 << 40)


def bytes_in_its_name(at: Path) -> None:
    with open(os.fsencode(at) + b"/\xff\x1b[31m.onnx", "wb") as file:
        file.write(parsed(ADD).SerializeToString())


def bytes_in_a_name_inside(at: Path) -> None:
    data = parsed(ADD.replace("y", "yyyy")).SerializeToString()
    (at / "bad.onnx").write_bytes(data.replace(b"yyyy", b"\xff\xfe\x80\x81"))


def deep_toml(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx", f"a = {'[' * 20_000}{']' * 20_000}")


def toml_of_one_key(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx", ".".join(["a"] * 65) + " = 1\n")


def many_inputs(at: Path) -> None:
    inputs = ", ".join(f"float[n, 3] x{place}" for place in range(1025))
    save(parsed(f"({inputs}) => (float[n, 3] y) {{ y = Identity(x0) }}"), at / "bad.onnx")


def a_long_name(at: Path) -> None:
    save(parsed(ADD.replace("y", "y" * 1025)), at / "bad.onnx")


def many_axes(at: Path) -> None:
    save(parsed(ADD.replace("[n, 3] y", f"[n, 3{', 1' * 63}] y")), at / "bad.onnx")


def large_toml(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx", f"# {'x' * (1 << 20)}\n{SIDECAR}")


def number_without_end(at: Path) -> None:
    save(parsed(ADD), at / "bad.onnx", f"max_batch = {'9' * 100_000}\n{SIDECAR}")


def large_card(at: Path) -> None:
    model = card_of(parsed(ADD))
    model.metadata_props[0].value = model.metadata_props[0].value.replace("{", "{" + " " * (1 << 20), 1)
    save(model, at / "bad.onnx")


def deep_card(at: Path) -> None:
    model = parsed(ADD)
    model.metadata_props.add(key=METADATA_KEY, value='{"config": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001)
    save(model, at / "bad.onnx")


def dtype_that_is_none(at: Path) -> None:
    model = parsed(ADD)
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
    "a key of many parts": (toml_of_one_key, "bad.toml", "a key has at most 64 parts"),
    "many inputs": (many_inputs, "bad.onnx", "a graph has at most 1024 inputs and as many outputs"),
    "a long name": (a_long_name, "bad.onnx", "a name has at most 1024 characters"),
    "many axes": (many_axes, "bad.onnx", "a tensor at most 64 axes"),
    "large TOML": (large_toml, "bad.toml", "a sidecar has at most 1048576 bytes"),
    "a number without end": (number_without_end, "bad.toml", "not valid TOML"),
    "a large card": (large_card, "bad.onnx", "card has at most 1048576 bytes"),
    "a deep card": (deep_card, "bad.onnx", "card is not valid"),
    "a dtype that is none": (dtype_that_is_none, "bad.onnx", ""),
}


def unknown_operator(at: Path) -> None:
    model = parsed(ADD)
    model.graph.node[0].op_type = "Divine"
    save(model, at / "bad.onnx", SIDECAR + STATE)


def no_kernel(at: Path) -> None:
    text = (
        "(double[t, n, 3] x, double[1, n, 4] h) => (double[t, 1, n, 4] y, double[1, n, 4] h_next)"
        " { y, h_next = RNN <hidden_size = 4> (x, W, R, , , h) }"
    )
    model = parsed(text, W=np.zeros((1, 4, 3)), R=np.zeros((1, 4, 4)))
    side = 'layout = "time_batch"\ninputs = ["x"]\noutputs = [{ name = "y", step_shape = [1, 4] }]\n'
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1
    save(model, at / "bad.onnx", side + STATE + "batch_axis = 1\n")


def state_bomb(at: Path) -> None:
    model = parsed(ADD.replace("float[n, 3] h", f"float[n, {1 << 40}] h"))
    save(model, at / "bad.onnx", SIDECAR + STATE)


def state_overflow(at: Path) -> None:
    big = ", ".join([str(1 << 62)] * 4)
    model = parsed(ADD.replace("float[n, 3] h", f"float[n, {big}] h"))
    save(model, at / "bad.onnx", SIDECAR + STATE)


def step_bomb(at: Path) -> None:
    save(
        parsed(f"(int64[n, {1 << 40}] x) => (int64[n, {1 << 40}] y) {{ y = Identity(x) }}"),
        at / "bad.onnx",
        SIDECAR,
    )


def output_bomb(at: Path) -> None:
    model = parsed(
        "(float[n, 3] x) => (float[n, 3] y)"
        " { b = ConstantOfShape(size) c = ReduceMax <keepdims = 0> (b) y = Add(x, c) }",
        size=np.array([1 << 40]),
    )
    save(model, at / "bad.onnx", SIDECAR)


def shapes_that_lie(at: Path) -> None:
    model = parsed("(float[n, 3] x) => (float[n, 3] y) { y = MatMul(x, w) }", w=np.ones((3, 3), np.float32))
    model.graph.initializer[0].dims[:] = [3, 1 << 61]
    save(model, at / "bad.onnx", SIDECAR)


def external_length_lies(at: Path) -> None:
    (at / "weights").write_bytes(struct.pack("<3f", 1, 2, 3))
    model = parsed("(float[n, 3] x) => (float[n, 3] y) { y = Add(x, w) }", w=np.ones(3, np.float32))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "4611686018427387904"), ("length", str(1 << 62))):
        tensor.external_data.add(key=key, value=value)
    (at / "bad.onnx").write_bytes(model.SerializeToString())
    (at / "bad.toml").write_text(SIDECAR)


def function_of_itself(at: Path) -> None:
    model = parsed("(float[n, 3] x) => (float[n, 3] y) { y = Neg(x) }")
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
