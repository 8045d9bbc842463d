"""Requests of the Open Inference Protocol and what is made of their answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc

from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc

Steps = np.ndarray[Any, Any]


Expected = Callable[[str, Steps], Steps]


ids = itertools.count(1000)


def close(y: Steps, expected: Steps) -> None:
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def request(x: Steps, model: str = "lstm", name: str = "", **flags: Any) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name=model, id=name, raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    for key, value in flags.items():
        parameter = message.parameters[key]
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(parameter, kind, value)
    return message


def stub(target: str) -> Any:
    return oip_rpc.GRPCInferenceServiceStub(grpc.insecure_channel(target))


def input_of(x: Steps) -> Any:
    given = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return given
