"""Shapes of a graph's values, as far as they can be inferred."""

from __future__ import annotations

import onnx

# A size, the name of an open one, or None if nothing is known.
Size = int | str | None


def inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[Size, ...]]:
    """The shape of every value of the graph itself, not of its bodies, whose rank can be inferred."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}  # ONNX Runtime decides whether the graph is sound
    return {
        value.name: tuple(map(_size, value.type.tensor_type.shape.dim))
        for value in (*inferred.input, *inferred.value_info)
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
    }


def inferred_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The same, with -1 for every size that is not a number."""
    return {
        name: tuple(size if isinstance(size, int) else -1 for size in shape)
        for name, shape in inferred_shapes(model).items()
    }


def _size(dim: onnx.TensorShapeProto.Dimension) -> Size:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    # The inference names the sizes that it cannot tell unk__0, unk__1, ….
    return None if dim.dim_param.startswith("unk__") else dim.dim_param or None
