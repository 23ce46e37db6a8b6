"""The command line's tools beside the way from recordings to rollouts: inspect, export."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup


class PathOrCommand(TyperGroup):
    """A group whose first word, where it is none of its commands, belongs to its first command."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        first = next(iter(self.commands))
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [first, *args]
        return super().parse_args(ctx, args)


tools = typer.Typer(rich_markup_mode="rich")
inspect = typer.Typer(
    cls=PathOrCommand,
    help="Look at shards, or at what a model is made of.\n\n"
    "`inspect PATH` is short for `inspect shards PATH`.",
    epilog="Examples:\n\ncosmos-wds inspect my/shards --html\n\n"
    "cosmos-wds inspect my/shards --verify\n\ncosmos-wds inspect model cosmos-predict1-7b",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
tools.add_typer(inspect, name="inspect")

Preset = Annotated[
    Literal["ours", "reference"],
    typer.Option(help="How bridge (ours) or bridge_reference builds a size's network."),
]


@inspect.command(
    "shards",
    epilog="Examples:\n\ncosmos-wds inspect my/shards\n\ncosmos-wds inspect my/shards --html\n\n"
    "cosmos-wds inspect my/shards --verify",
)
def inspect_shards(  # noqa: PLR0913 (a command's options are its arguments)
    path: Annotated[str, typer.Argument(help="Folder of shards; ./model for one called model.")],
    html: Annotated[
        bool, typer.Option("--html", help="Write a page with playing episodes too.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything again and tell every problem.")
    ] = False,
    episodes: Annotated[
        int, typer.Option(min=1, help="Of each split, on the sheet and the page.")
    ] = 4,
    output: Annotated[Path, typer.Option(help="Folder of the sheet and the page.")] = Path(
        "outputs/inspect"
    ),
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that verify; 0 uses every core.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Totals, pictures, texts, action contract and statistics of shards; and a contact sheet.

    With --verify, exit code 1 says that something is not in order.
    """
    from cosmos_wds.inspection.look import InspectRequest
    from cosmos_wds.inspection.look import inspect as look

    look(
        InspectRequest(
            path=path,
            output=output,
            html=html,
            verify=verify,
            json=json,
            episodes=episodes,
            workers=workers,
        )
    )


@inspect.command(
    "model",
    epilog="Examples:\n\ncosmos-wds inspect model cosmos-predict1-7b --preset reference\n\n"
    "cosmos-wds inspect model bridge",
)
def inspect_model(
    name: Annotated[str, typer.Argument(help="A size (cosmos-predict1-7b, ...) or a recipe.")],
    preset: Preset = "ours",
) -> None:
    """Parameters by group, in total and on the device, and operations per sample.

    Nothing is allocated. A recipe brings its own window; a size is shown at 2 frames of 256x320.
    """
    from cosmos_wds.console import result
    from cosmos_wds.model.show import facts_table

    for part in facts_table(name, preset):
        result.print(part)


@tools.command(
    epilog="Examples:\n\ncosmos-wds export my/run --format pt\n\n"
    "cosmos-wds export my/run --format diffusers --push my-name/my-model"
)
def export(  # noqa: PLR0913 (a command's options are its arguments)
    run: Annotated[str, typer.Argument(help="A run's folder, or a file of its weights.")],
    form: Annotated[
        Literal["pt", "safetensors", "diffusers"],
        typer.Option("--format", help="NVIDIA's names as .pt or safetensors, or diffusers'."),
    ] = "safetensors",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; exports/NAME-FORMAT if left out.")
    ] = None,
    weights: Annotated[
        Literal["ema", "reg"], typer.Option(help="The running average, or as trained.")
    ] = "ema",
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the numbers written.")
    ] = "bfloat16",
    base: Annotated[
        str | None,
        typer.Option(help="Where the base lies whose text path is written back, if it has moved."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the folder to the hub too.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that is there.")
    ] = False,
) -> None:
    """Write a run's weights as a folder that stands alone, with recipe, contract and model card."""
    from cosmos_wds.train.export import ExportRequest
    from cosmos_wds.train.export import export as write

    request = ExportRequest(
        run=run,
        form=form,
        output=output,
        weights=weights,
        dtype=dtype,
        base=base,
        overwrite=overwrite,
    )
    folder = write(request)
    if push:
        from cosmos_wds.sources.push import push_folder

        push_folder(folder, push)
    typer.echo(folder)
