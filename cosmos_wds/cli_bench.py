"""The command line's `bench`: how fast a network, loader or rollout is on this machine."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cosmos_wds.cli_download import Changes
from cosmos_wds.cli_tools import Preset
from cosmos_wds.errors import ConfigError

bench = typer.Typer(
    help="Measure this machine's speed.", no_args_is_help=True, rich_markup_mode="rich"
)


@bench.command(
    "model",
    epilog="Examples:\n\ncosmos-wds bench model cosmos-predict1-7b --backward\n\n"
    "cosmos-wds bench model cosmos-tiny --batch 8",
)
def bench_model(  # noqa: PLR0913 (a command's options are its arguments)
    name: Annotated[str, typer.Argument(help="A size (cosmos-predict1-7b, ...) or a recipe.")],
    preset: Preset = "ours",
    batch: Annotated[int, typer.Option(min=1, help="Samples that run together.")] = 1,
    backward: Annotated[bool, typer.Option("--backward", help="Forward and backward.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs; their median counts.")] = 5,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="Compile each block first.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")] = "auto",
    json_lines: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Time, memory and share of the card's matrix rate of a network with random weights."""
    from cosmos_wds.console import result
    from cosmos_wds.train.bench_model import BenchRequest, run_bench

    measured = run_bench(
        BenchRequest(
            name=name,
            preset=preset,
            batch=batch,
            backward=backward,
            repeats=repeats,
            compile_blocks=compile_blocks,
            device=device,
        )
    )
    result.print(measured.to_json() if json_lines else measured.table())


@bench.command(
    "loader",
    epilog="Examples:\n\ncosmos-wds bench loader bridge\n\n"
    "cosmos-wds bench loader bridge --set data.shards=my/shards --against reference "
    "--recordings my/recordings",
)
def bench_loader(  # noqa: PLR0913 (a command's options are its arguments)
    recipe: Annotated[str, typer.Argument(help="A recipe: bridge, demo, or a file of yours.")],
    changes: Changes = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Windows to read; 0 reads a whole epoch.")
    ] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements; their median counts.")] = 3,
    against: Annotated[
        Literal["reference"] | None,
        typer.Option(help="Measure a loader written as the reference's too, in turns."),
    ] = None,
    recordings: Annotated[
        Path, typer.Option(help="What that one reads: recordings in the layout of Bridge.")
    ] = Path("data/bridge/raw"),
    json_lines: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Speed, CPU time, bytes, memory and time to the first batch of a recipe's loader."""
    from cosmos_wds.console import result
    from cosmos_wds.recipe import load_recipe

    settings = load_recipe(recipe, changes or ())
    from cosmos_wds.train.bench_loader import LoaderBenchRequest, bench_loader

    measured = bench_loader(
        LoaderBenchRequest(
            recipe=settings,
            samples=samples,
            repeats=repeats,
            recordings=recordings if against else None,
        )
    )
    result.print(measured.to_json() if json_lines else measured.table())


@bench.command(
    "train",
    epilog="Examples:\n\ncosmos-wds bench train demo --against plain\n\n"
    "cosmos-wds bench train bridge_1gpu --grid",
)
def bench_train(  # noqa: PLR0913 (a command's options are its arguments)
    recipe: Annotated[str, typer.Argument(help="A recipe: bridge, demo, or a file of yours.")],
    changes: Changes = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; their median counts.")] = 10,
    against: Annotated[
        Literal["plain"] | None, typer.Option(help="Time a plain training loop too, in turns.")
    ] = None,
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Each micro-batch, checkpointing and compilation in turn."),
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print lines of JSON.")] = False,
) -> None:
    """Time, memory and share of the card's matrix rate of a training step, with random weights.

    It needs no shards and no weights.
    """
    from cosmos_wds.console import result
    from cosmos_wds.recipe import load_recipe

    settings = load_recipe(recipe, changes or ())
    from cosmos_wds.train.bench_grid import bench_grid, grid_table
    from cosmos_wds.train.bench_train import TrainBenchRequest, bench_train

    if grid:
        if against:
            raise ConfigError("--grid: without --against")
        rows = bench_grid(settings, steps=steps)
        for line in map(json.dumps, rows) if json_lines else [grid_table(rows)]:
            result.print(line)
        return
    request = TrainBenchRequest(recipe=settings, steps=steps, against_plain=against is not None)
    measured = bench_train(request)
    result.print(measured.to_json() if json_lines else measured.table())


@bench.command(
    "rollout",
    epilog="Examples:\n\ncosmos-wds bench rollout cosmos-predict1-7b --steps 35\n\n"
    "cosmos-wds bench rollout my/run --steps-table",
)
def bench_rollout(  # noqa: PLR0913 (a command's options are its arguments)
    name: Annotated[
        str,
        typer.Argument(
            help="A size, with random weights, or trained weights. [default: cosmos-predict1-7b "
            "on a GPU, else cosmos-tiny]",
            show_default=False,
        ),
    ] = "",
    frames: Annotated[int, typer.Option(min=1, help="That a rollout generates.")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps; left out, the recipe's.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rollouts at once; left out, 8, on a GPU what is fastest."),
    ] = None,
    height: Annotated[int | None, typer.Option(min=16, help="Of pictures.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Of pictures.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns; their median counts.")] = 3,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="Compile each block of ours first.")
    ] = False,
    steps_table: Annotated[
        bool,
        typer.Option("--steps-table", help="What fewer sampler steps gain and lose, instead."),
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")] = "auto",
    json_lines: Annotated[bool, typer.Option("--json", help="Print lines of JSON.")] = False,
) -> None:
    """Frames per second of rollouts, beside one done as the reference does it."""
    from cosmos_wds.console import result
    from cosmos_wds.rollout import bench_rollout as bench
    from cosmos_wds.rollout import bench_steps

    request = bench.RolloutBenchRequest(
        name=name,
        frames=frames,
        steps=steps,
        batch=batch,
        height=height,
        width=width,
        repeats=repeats,
        compile_blocks=compile_blocks,
        device=device,
    )
    if steps_table:
        rows = bench_steps.bench_steps(request)
        result.print(bench_steps.steps_table(rows, as_json=json_lines))
        return
    measured = bench.bench_rollout(request)
    result.print(measured.to_json() if json_lines else measured.table())
