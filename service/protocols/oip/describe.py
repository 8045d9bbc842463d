"""Models as the Open Inference Protocol describes them: metadata, configuration, statistics."""

from __future__ import annotations

from streamcell.card import Tensor
from streamcell.proto.inference import oip
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.metrics.request_metrics import Spent

from .tensors import DATATYPES, dims

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"


def metadata(model: LoadedModel, versions: list[str]) -> oip.ModelMetadataResponse:
    """Names, dtypes and shapes, the batch first."""
    signature = model.file.signature

    def describe(tensor: Tensor) -> oip.ModelMetadataResponse.TensorMetadata:
        return oip.ModelMetadataResponse.TensorMetadata(
            name=tensor.name, datatype=DATATYPES[tensor.dtype], shape=[-1, *dims(signature, tensor)]
        )

    return oip.ModelMetadataResponse(
        name=model.file.name,
        versions=versions,
        platform=PLATFORM,
        inputs=map(describe, (*signature.inputs, *signature.open_inputs)),
        outputs=map(describe, signature.outputs),
    )


def config(model: LoadedModel, device: Device, idle_timeout_s: float) -> oip.ModelConfig:
    """The configuration that Triton would have for such a model, without states, which the server manages."""
    signature = model.file.signature
    group = oip.ModelInstanceGroup(name=f"{model.file.name}_0", count=1)
    group.kind = oip.ModelInstanceGroup.KIND_CPU if device.on_host else oip.ModelInstanceGroup.KIND_GPU
    found = oip.ModelConfig(
        name=model.file.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=model.engine.max_batch,
        input=[
            oip.ModelInput(name=t.name, data_type=_data_type(t), dims=dims(signature, t))
            for t in signature.inputs
        ]
        + [
            oip.ModelInput(name=t.name, data_type=_data_type(t), dims=t.step_shape, optional=True)
            for t in signature.open_inputs
        ],
        output=[
            oip.ModelOutput(name=t.name, data_type=_data_type(t), dims=dims(signature, t))
            for t in signature.outputs
        ],
        instance_group=[group],
        default_model_filename=model.file.path.name,
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    if signature.states:
        found.sequence_batching.max_sequence_idle_microseconds = round(idle_timeout_s * 1e6)
        found.sequence_batching.oldest.max_candidate_sequences = model.max_sessions
    else:
        found.dynamic_batching.SetInParent()
    return found


def _data_type(tensor: Tensor) -> oip.DataType:
    return getattr(oip, f"TYPE_{DATATYPES[tensor.dtype]}")  # type: ignore[no-any-return]


def statistics(model: LoadedModel) -> oip.ModelStatistics:
    """Counts and durations since the model was loaded."""
    figures = model.metrics.request_figures()
    infer = oip.InferStatistics()
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        getattr(infer, name).CopyFrom(_duration(getattr(figures, name)))
    for unused in (infer.cache_hit, infer.cache_miss):
        unused.SetInParent()
    return oip.ModelStatistics(
        name=model.file.name,
        version=model.file.version,
        last_inference=figures.last_ms,
        inference_count=figures.inferences,
        execution_count=figures.executions,
        inference_stats=infer,
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=each.rows,
                compute_input=_duration(each.compute_input),
                compute_infer=_duration(each.compute_infer),
                compute_output=_duration(each.compute_output),
            )
            for each in figures.batches
        ],
    )


def _duration(spent: Spent) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=spent.count, ns=spent.total_ns)
