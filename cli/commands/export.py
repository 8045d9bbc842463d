"""`streamcell export`: a run folder, or a module of your own, to an .onnx file with its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from streamcell.card import ModelCard
    from streamcell.export import ExportOptions


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE.py:FACTORY", help="A run folder, or a factory of a torch module."),
    ],
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    name: Annotated[str | None, typer.Option(help="Name in the card.  [the file's stem]")] = None,
    description: Annotated[str, typer.Option(help="A line about the model, for its card.")] = "",
    precision: Annotated[
        str, typer.Option(help="fp32; fp16: weights stored so; int8: that, and on a CPU also multiplied so.")
    ] = "fp32",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest error allowed.  [1e-5, fp16 1e-2, int8 2e-1]")
    ] = None,
    lengths: Annotated[
        bool, typer.Option(help="Add the input `lengths`: rows of different lengths can share a run.")
    ] = True,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME:DTYPE[SIZES]",
            help="FILE.py only, once for each input: the parameter of forward, dtype and sizes of one timestep, as "
            "x:float32[3] or tokens:int64. NAME.KEY: a key of a dict or a field of a dataclass. =0..9 behind it: the "
            "lowest and the highest value.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="FILE.py only: short for one float32 input of this shape a timestep, as 32 or 3,64."
        ),
    ] = None,
    time_axis: Annotated[
        bool | None,
        typer.Option(
            help="FILE.py only: whether forward takes a time axis.  [found by trying]", show_default=False
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="FILE.py only: batch (one timestep a run) or batch_time.")
    ] = "batch",
) -> None:
    """Write a model as ONNX, proved against PyTorch; over tolerance nothing is written.

    The factory of FILE.py:FACTORY is a function without arguments, or the class, of a torch module. How it is
    called, its states and its outputs are found by calling it.
    """
    from streamcell.export import ExportError, ExportOptions, SpecError, export_run, is_spec

    options = ExportOptions(name=name, description=description, precision=precision, tolerance=tolerance)
    try:
        if is_spec(source):
            card = _export_spec(
                source,
                out,
                options,
                lengths=lengths,
                inputs=inputs or [],
                input_shape=input_shape,
                time_axis=time_axis,
                layout=layout,
            )
        elif inputs or input_shape is not None or time_axis is not None or layout != "batch":
            raise SpecError(
                "--input, --input-shape, --time-axis and --layout can only be given for FILE.py:FACTORY"
            )
        else:
            card = export_run(source, out, lengths=lengths, **options)
    except ExportError as error:
        typer.echo(f"streamcell export: {error}", err=True)
        raise typer.Exit(1) from error
    _report(card, out)


def _export_spec(
    source: str,
    out: Path,
    options: ExportOptions,
    *,
    lengths: bool,
    inputs: list[str],
    input_shape: str | None,
    time_axis: bool | None,
    layout: str,
) -> ModelCard:
    from streamcell.export import SpecError, export_model, export_module, load_module
    from streamcell.models import SequenceModel

    module = load_module(source)
    if isinstance(module, SequenceModel):
        return export_model(module, out, lengths=lengths, **options)
    if layout not in ("batch", "batch_time"):
        raise SpecError(f"--layout must be batch or batch_time; got {layout!r}")
    return export_module(
        module,
        out,
        example_x=_example(module, inputs, input_shape, leading=1 if time_axis is False else 2),
        time_axis=time_axis,
        layout="batch" if layout == "batch" else "batch_time",
        **options,
    )


def _example(module: nn.Module, inputs: list[str], input_shape: str | None, leading: int) -> Any:
    """Random examples, [4, 64, *step], or [256, *step] with `leading` 1."""
    from streamcell.export import InputSpec, SpecError, example_tensor, examples_from, forward_takes

    if inputs and input_shape is not None:
        raise SpecError("give --input or --input-shape, not both")
    if input_shape is not None:
        return example_tensor(InputSpec(("x",), "float32", _shape(input_shape)), leading)
    if not inputs:
        takes = forward_takes(module)
        first = takes[0] if takes else "x"
        raise SpecError(
            f"say what goes in, with the sizes of one timestep: {type(module).__name__}.forward takes "
            f"{', '.join(takes)}, so for example --input {first}:float32[32], or --input {first}:int64 for tokens"
        )
    return examples_from(module, [InputSpec.parse(text) for text in inputs], leading)


def _shape(text: str) -> tuple[int, ...]:
    from streamcell.export import SpecError

    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"--input-shape must be sizes such as 32 or 3,64; got {text!r}") from error
    if min(shape) < 1:
        raise SpecError(f"--input-shape: each size must be at least 1; got {text!r}")
    return shape


def _in_int8(card: ModelCard) -> Iterator[str]:
    """What the file is worth if the server multiplies in int8."""
    from streamcell.export import gains

    found = card.proof.get("int8")
    if found is None:
        if card.precision == "int8":
            yield "int8: weights are stored so; no product of this graph can be in int8"
        return
    yield f"int8: in int8 too, the largest error is {found['max_error']:.2e}"
    factors = ", ".join(f"{factor} with {rows}" for rows, factor in found["times_as_fast"].items())
    told = f"a step is this many times as fast as in float32, by rows, on one thread here: {factors}"
    if gains(found["times_as_fast"]):
        yield f"int8: {told}"
    else:
        yield f"int8 gains nothing at this size, and a server like this machine computes in float32: {told}"
    test = card.proof.get("test")
    if test is not None and "left_out" in test:
        yield f"test data: left out, {test['left_out']}"
    elif test is not None:
        before, after = test["float32"], test["int8"]
        accuracy = (
            ""
            if before["accuracy"] is None
            else f", accuracy {before['accuracy']:.4f} → {after['accuracy']:.4f}"
        )
        yield (
            f"test data, float32 → int8: loss {before['loss']:.5g} → {after['loss']:.5g}{accuracy}; "
            f"the largest difference of an output is {test['largest_difference']:.3g}"
        )


def _report(card: ModelCard, out: Path) -> None:
    """The measured errors, as a table."""
    from rich.console import Console
    from rich.table import Table

    from streamcell.export import why_mute

    signature = card.signature
    given, made = (
        ", ".join(f"{t.name} {t.dtype}{list(t.step_shape)}" for t in tensors)
        for tensors in (signature.inputs, signature.outputs)
    )
    states = ", ".join(f"{s.input} {s.dtype}{list(s.shape)}" for s in signature.states) or "none"
    table = Table(title=f"{card.name}: {card.kind}, {card.precision}", title_justify="left")
    table.add_column("ONNX Runtime against PyTorch")
    table.add_column("error", justify="right")
    for check, error in card.proof["errors"].items():
        table.add_row(check, f"{error:.2e}")
    table.add_section()
    table.add_row("tolerance", f"{card.proof['tolerance']:.2e}")
    console = Console()
    console.print(table)
    console.print(f"error: {card.proof['metric']}", markup=False, highlight=False)
    if card.generation is None and (why := why_mute(card.training)) is not None:
        console.print(
            f"the server cannot continue it by itself: {why}", markup=False, highlight=False, soft_wrap=True
        )
    for line in _in_int8(card):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{given} → {made}, states: {states}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"wrote {out} ({out.stat().st_size:,} bytes)", markup=False, highlight=False, soft_wrap=True
    )
