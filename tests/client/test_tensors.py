"""What the client takes for a tensor and what it refuses: safe conversions only, exact shapes, exact values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamcell.client import InvalidInput, ServerFault
from streamcell.client.protocol.tensors import TensorCodec

DTYPES = [
    "float32",
    "float16",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=4))
    ),
    rank=st.integers(0, 2),
)
def test_what_is_encoded_is_decoded(array: np.ndarray[Any, Any], rank: int) -> None:
    rank = min(rank, array.ndim)
    codec = TensorCodec("x", str(array.dtype), array.shape[rank:])
    data, leading = codec.encode(array, (rank,))
    assert leading == array.shape[:rank]
    assert data == array.astype(array.dtype.newbyteorder("<")).tobytes()
    back = codec.decode(data, leading)
    assert back.dtype == array.dtype
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_arrays_of_any_layout_and_byte_order_go_as_little_endian_in_c_order() -> None:
    codec = TensorCodec("x", "float32", [3])
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (array, np.asfortranarray(array), array.astype(">f4"), array[:, ::-1].copy()[:, ::-1]):
        assert codec.encode(same, (1,)) == (array.astype("<f4").tobytes(), (2,))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", np.zeros(2, np.float16)),
        ("float32", np.zeros(2, np.int16)),
        ("float64", np.zeros(2, np.float32)),
        ("int64", np.zeros(2, np.uint32)),
        ("float32", [1, 2.5]),
        ("float32", (True, 0)),
        ("float16", [0.1, float("nan")]),
        ("float32", [float("inf"), 0.0]),
        ("uint8", [0, 255]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("bool", [True, False]),
        ("float32", [np.float32(1), np.float32(2)]),
        ("float32", torch.ones(2)),
    ],
)
def test_safe_conversions_are_made(dtype: str, value: Any) -> None:
    codec = TensorCodec("x", dtype, [2])
    data, _ = codec.encode(value, (0,))
    np.testing.assert_array_equal(codec.decode(data, ()), np.array(list(value), dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("float32", np.zeros(2), r"expected float32, got float64: convert it with \.astype\('float32'\)"),
        ("float32", np.zeros(2, np.int32), "got int32"),
        ("float32", [np.zeros(1), np.zeros(1)], "got float64"),
        ("float32", [np.float64(1), 2.0], "got float64"),
        ("int8", np.zeros(2, np.uint8), "got uint8"),
        ("int32", [1.0, 2.0], "expected int32, got floats"),
        ("bool", [0, 1], "expected bool, got ints"),
        ("uint8", [0, 256], "numbers outside 0 to 255"),
        ("uint8", [-1, 1], "numbers outside 0 to 255"),
        ("float32", [1e300, 0.0], "numbers beyond its range"),
        ("float32", ["1", "2"], "got text"),
        ("float32", [None, 1.0], "got objects"),
        ("int64", [2**70, 0], "numbers outside"),
        ("float32", torch.ones(2, dtype=torch.float64), "got float64"),
        ("int64", [2**70, 0.5], "expected int64, got (floats|objects)"),
    ],
)
def test_whatever_could_change_a_value_is_refused(dtype: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text) as caught:
        TensorCodec("gain", dtype, [2]).encode(value, (0,))
    assert caught.value.reason == "WRONG_DTYPE"
    assert caught.value.metadata["input"] == "gain"
    assert caught.value.metadata["expected"] == dtype


@pytest.mark.parametrize(
    ("shape", "ranks", "text"),
    [
        ((3,), (0,), r"expected shape \[2\], got \[3\]"),
        ((1, 2), (0,), r"expected shape \[2\], got \[1, 2\]"),
        ((2,), (1,), r"expected shape \[steps, 2\], got \[2\]"),
        ((), (0, 1), r"expected shape \[2\] or \[steps, 2\], got \[\]"),
        ((5, 4, 3), (1, 2), r"expected shape \[steps, 2\] or \[batch, steps, 2\], got \[5, 4, 3\]"),
    ],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], ranks: tuple[int, ...], text: str) -> None:
    with pytest.raises(InvalidInput, match=text) as caught:
        TensorCodec("x", "float32", [2]).encode(np.zeros(shape, np.float32), ranks)
    assert caught.value.reason == "WRONG_SHAPE"


def test_rows_of_different_lengths_are_a_wrong_shape() -> None:
    with pytest.raises(InvalidInput, match="input 'x'") as caught:
        TensorCodec("x", "float32", [2]).encode([[1.0, 2.0], [3.0]], (1,))
    assert caught.value.reason == "WRONG_SHAPE"


def test_a_reply_of_the_wrong_size_is_the_servers_fault() -> None:
    with pytest.raises(ServerFault, match=r"float32\[4, 2\] takes 32 bytes, the reply has 8"):
        TensorCodec("y", "float32", [2]).decode(b"12345678", (4,))
