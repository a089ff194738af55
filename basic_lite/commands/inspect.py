"""``inspect``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.choices import require_place
from basic_lite.commands.common import Device, NumberType
from basic_lite.errors import UserError


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="Run folder, bundle, or a vision-language model of transformers (folder or hub name).",
            show_default=False,
        ),
    ],
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURE", help="Pictures; their texts are the model's own descriptions."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Pictures with texts, in any format of training data.", show_default=False)
    ] = None,
    image_dir: Annotated[Path | None, typer.Option(help="Folder of the images; default: beside the data.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=2, max=100_000, help="Samples of the data. Default: 64; of a run, as many as it looks at."),
    ] = None,
    device: Device = "auto",
    dtype: NumberType = "auto",
    quantization: Annotated[
        Literal["none", "nf4"], typer.Option(help="nf4: the LLM's layers in 4 bit, for a smaller card.")
    ] = "none",
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write token maps there: words, attention and sinks over the first pictures "
            "(12, or a batch more), as a page and as PNG files.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers whose words --maps shows, such as 1,6,12. Default: four, from 1 to those that make v̂.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it all as JSON.")] = False,
) -> None:
    """Look into a model without training it.

    Does BASIC's premise hold for it? Shows what it is built of, where visual tokens become words on their way through
    its LLM, with 95 % intervals and a verdict, their norms, sinks and largest dimensions, and whether basic-lite
    could train it with BASIC.

    Of a run without data: the samples that the run itself looks at. Of another model without data or pictures: only
    what its configuration says, and no weight is read.
    """
    from basic_lite.console import command_line
    from basic_lite.tools.chat.words import names_picture, require_there
    from basic_lite.tools.model_place import look_at_model

    look_at_model(model, "inspect")
    if asked := next((word for word in pictures or [] if not names_picture(word)), None):
        chat = command_line(["basic-lite", "chat", model, asked])
        raise UserError(f"`inspect` takes pictures and asks nothing, and {asked} is none; ask with {chat}")
    for picture in pictures or []:
        require_there(picture)
    if data is not None:
        require_place(data)
    from basic_lite.tools.inspect.command import inspect as look_into

    look_into(
        model,
        pictures or [],
        data=data,
        image_dir=image_dir,
        samples=samples,
        device=device,
        dtype=dtype,
        quantization=quantization,
        maps=maps,
        layers=layers,
        as_json=as_json,
    )
