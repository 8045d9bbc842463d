"""Several graphs as one: each value under its stage's name, wires from the outputs of one stage to inputs of others.

onnx.compose merges two graphs at a time and leaves what bodies of If, Loop and Scan read from around them under its old
name, so it is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import inliner, version_converter

from streamcell.card.graphs.edit import remove_initializers, subgraphs
from streamcell.service.errors import cut, shown
from streamcell.service.load_errors import PipelineError, Problems

from .interface import GraphInterface, GraphValue, read_interface

_DEFAULT_OPSET = 17
_MAIN = ("", "ai.onnx")


@dataclass(frozen=True)
class Part:
    """One stage.

    Attributes:
        name: without a dot; its values are called `name.value` in the whole.
        model: `merge` takes it apart.
        wires: the sources of some of its inputs: `stage.output`, or the name of an input of the whole.
    """

    name: str
    model: onnx.ModelProto
    wires: Mapping[str, str] = field(default_factory=dict)


def merge(parts: Sequence[Part]) -> onnx.ModelProto:
    """One model of all `parts`; its inputs are those without a wire, its outputs are those of all parts.

    Parts of an older opset are converted to the newest; functions are written out.

    Raises:
        PipelineError: wires that lead nowhere, round in a circle or between tensors that do not fit, parts that cannot
            run at one opset; all of them at once.
    """
    interfaces = {part.name: read_interface(part.model.graph) for part in parts}
    problems = Problems()
    given = _inputs_of_the_whole(parts)
    for part in parts:
        for target, source in part.wires.items():
            _check_wire(part, target, source, interfaces, given, problems)
    order = _in_order(parts, interfaces, problems)
    opsets = _opsets(parts, problems)
    if problems:
        raise PipelineError(str(problems), problems=problems)
    whole = onnx.ModelProto(ir_version=max(part.model.ir_version for part in parts))
    whole.graph.name = "pipeline"
    for domain, version in opsets.items():
        whole.opset_import.add(domain=domain, version=version)
    for name, port in given.items():
        value = whole.graph.input.add()
        value.CopyFrom(port)
        value.name = name
    for part in order:
        _append(whole.graph, part, _converted(part, opsets[""]))
    return whole


def _inputs_of_the_whole(parts: Sequence[Part]) -> dict[str, onnx.ValueInfoProto]:
    """Those that wires name, as the first stage that takes them declares them."""
    found: dict[str, onnx.ValueInfoProto] = {}
    for part in parts:
        for target, source in part.wires.items():
            port = next((value for value in part.model.graph.input if value.name == target), None)
            if "." not in source and port is not None:
                found.setdefault(source, port)
    return found


def _check_wire(
    part: Part,
    target: str,
    source: str,
    interfaces: Mapping[str, GraphInterface],
    given: Mapping[str, onnx.ValueInfoProto],
    problems: Problems,
) -> None:
    """Note the problems of one wire."""
    where = f"stages: {shown(part.name)}: wires.{cut(target)}"
    into = interfaces[part.name].all_inputs.get(target)
    if into is None:
        problems.add(f"{where}: the stage has no such input; it has\n{interfaces[part.name]}")
        return
    out: GraphValue | None
    if "." in source:
        stage, _, output = source.partition(".")
        if stage not in interfaces:
            problems.add(
                f"{where} = {shown(source)}: there is no stage {shown(stage)}; expected STAGE.OUTPUT with one of "
                f"{', '.join(map(shown, interfaces))}, or a name without a dot for an input that clients send"
            )
            return
        out = interfaces[stage].outputs.get(output)
        if out is None:
            problems.add(
                f"{where} = {shown(source)}: stage {shown(stage)} has no output {shown(output)}; it has\n"
                f"{interfaces[stage]}"
            )
            return
    else:
        first = read_interface(onnx.GraphProto(input=[given[source]]))
        (out,) = first.inputs.values()
    if not out.fits(into):
        problems.add(f"{where} = {shown(source)}: {out} does not fit into {into}")


def _in_order(
    parts: Sequence[Part], interfaces: Mapping[str, GraphInterface], problems: Problems
) -> list[Part]:
    """`parts`, each behind those that it takes something from."""
    before: TopologicalSorter[str] = TopologicalSorter()
    for part in parts:
        sources = (source.partition(".")[0] for source in part.wires.values() if "." in source)
        before.add(part.name, *(stage for stage in sources if stage in interfaces))
    by_name = {part.name: part for part in parts}
    try:
        return [by_name[name] for name in before.static_order()]
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        problems.add(
            f"stages: the wires go in a circle, {cut(circle)}; what a step takes from the step before is a state: take "
            "that wire out and say [[states]] with the stage's input and the other's output"
        )
        return list(parts)


def _opsets(parts: Sequence[Part], problems: Problems) -> dict[str, int]:
    """The version of each operator set in the whole: the newest of ONNX's own, the only one of any other."""
    versions: dict[str, int] = {"": 0}
    for part in parts:
        versions[""] = max(versions[""], _main_opset(part.model))
        for opset in part.model.opset_import:
            if opset.domain in _MAIN:
                continue
            if versions.setdefault(opset.domain, opset.version) != opset.version:
                problems.add(
                    f"stages: {shown(part.name)} uses version {opset.version} of {shown(opset.domain)}, another stage "
                    f"{versions[opset.domain]}; export both with the same"
                )
    return versions


def _main_opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in _MAIN), _DEFAULT_OPSET)


def _converted(part: Part, opset: int) -> onnx.ModelProto:
    """The part's model at that opset and without functions of its own."""
    model, own = part.model, _main_opset(part.model)
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        if own < opset:
            model = version_converter.convert_version(model, opset)
    except Exception as error:  # onnx raises RuntimeError, ValueError and errors of its own
        raise PipelineError(
            f"stages: {shown(part.name)} uses opset {own}, another stage {opset}, and onnx cannot convert it: "
            f"{cut(str(error))}; export all with one opset"
        ) from error
    return model


def _append(whole: onnx.GraphProto, part: Part, model: onnx.ModelProto) -> None:
    """Append the part's graph to `whole`."""
    graph, prefix = model.graph, f"{part.name}."
    _rename(graph, prefix)
    wired = {f"{prefix}{target}": source for target, source in part.wires.items()}
    remove_initializers(graph, set(wired))  # a default
    for target, source in wired.items():
        whole.node.append(
            onnx.helper.make_node("Identity", [source], [target], name=f"streamcell/wire/{target}")
        )
    whole.input.extend(value for value in graph.input if value.name not in wired)
    whole.output.extend(graph.output)
    whole.node.extend(graph.node)
    whole.initializer.extend(graph.initializer)
    whole.sparse_initializer.extend(graph.sparse_initializer)
    whole.value_info.extend(value for value in graph.value_info)
    whole.quantization_annotation.extend(graph.quantization_annotation)


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Put `prefix` before the names of all values and nodes, in bodies too; so names mean the same as before."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = prefix + value.name
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        tensor.name = prefix + tensor.name
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = prefix + annotation.tensor_name
        for parameter in annotation.quant_parameter_tensor_names:
            parameter.value = prefix + parameter.value
    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        for names in (node.input, node.output):
            names[:] = [prefix + name if name else "" for name in names]
        for body in subgraphs(node):
            _rename(body, prefix)
