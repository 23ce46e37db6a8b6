"""The command line's `eval`."""

from pathlib import Path
from typing import Annotated

import typer

from cosmos_wds.cli_download import Changes

OUTPUT = Path("outputs/eval")


def evaluate(  # noqa: PLR0913 (a command's options are its arguments)
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A run's folder or a file of weights; the bridge recipe's run."),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_URL", help="The recipe's if left out.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the episodes; the recipe's.", show_default=False)
    ] = None,
    episodes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT[:WHICH]",
            help="These, not the recipe's: val:0-15, val:3,7, val:KEY, val; may be repeated.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps; the recipe's.", show_default=False)
    ] = None,
    guardrail: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Passes, changes or refuses the frames."),
    ] = None,
    changes: Changes = None,
    write_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the keys of the episodes, for [eval] list."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for numbers, report and videos.")] = OUTPUT,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another evaluation that is there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Numbers as one line of JSON.")] = False,
) -> None:
    """Measure rollouts of held-out episodes: how close they come, and whether actions matter.

    The same command goes on where it stopped.
    """
    from cosmos_wds.rollout.eval_command import REPORT, EvalRequest, run_eval
    from cosmos_wds.rollout.infer import bridge_run

    table = run_eval(
        EvalRequest(
            checkpoint=checkpoint or bridge_run(),
            output=output,
            shards=shards,
            split=split,
            episodes=tuple(episodes or ()),
            steps=steps,
            guardrail=guardrail,
            settings=tuple(changes or ()),
            write_list=write_list,
            overwrite=overwrite,
        )
    )
    if not json:
        typer.echo(output / REPORT)
        return
    from json import dumps

    typer.echo(dumps({key: one for key, one in table.items() if key != "by_episode"}))
