"""``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.choices import new_place
from basic_lite.commands.common import Device, note
from basic_lite.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or bundle.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.", show_default=False)],
    merge_into: Annotated[
        Literal["original", "quantized"] | None,
        typer.Option(
            help="What LoRA is added to: the original weights, or the NF4 weights it was trained on, dequantised. "
            "Default: as trained.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto: the LLM's own."),
    ] = "auto",
    check: Annotated[bool, typer.Option(help="Compare the exported model with the trained one.")] = True,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Records of the run's data that the check takes. Default: 16.", show_default=False),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Most mean KL (nats a token) that passes. Default: 0.01; where LoRA goes into weights that it wasn't "
            "trained on, 0.05, or half of the KL without LoRA if that is more.",
            show_default=False,
        ),
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write GGUF files, for llama.cpp and Ollama.")] = False,
    gguf_type: Annotated[
        Literal["f32", "f16", "q8_0"] | None,
        typer.Option(help="With --gguf: type of the LLM's matrices. Default: f16.", show_default=False),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(help="With --gguf: llama.cpp's source; its converter then writes the LLM.", show_default=False),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a trained model for transformers, vLLM or llama.cpp.

    The folder can be opened by transformers and vLLM; with --gguf also by llama.cpp. LoRA is merged, the projector and
    the vision encoder lie beside it. The exit status is 1 where the exported model doesn't answer as the trained
    one did.
    """
    from basic_lite.training.bundle_files import find_bundle

    if not gguf and (llama_cpp is not None or gguf_type is not None):
        raise UserError("--llama-cpp and --gguf-type are for GGUF files; add --gguf")
    if not check and (samples is not None or limit is not None):
        raise UserError("--samples and --limit are for the check; leave out --no-check")
    find_bundle(run)
    new_place(out)
    from basic_lite.tools.export.command import export as write

    try:
        passed = write(
            run,
            out,
            merge_into=merge_into,
            dtype=dtype,
            samples=(samples or 16) if check else 0,
            limit=limit,
            gguf=(gguf_type or "f16") if gguf else None,
            llama_cpp=llama_cpp,
            device=device,
        )
    except KeyboardInterrupt:
        note("stopped; nothing was written")
        raise typer.Exit(130) from None
    if not passed:
        raise typer.Exit(1)
