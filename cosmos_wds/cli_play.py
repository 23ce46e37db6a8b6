"""The command line's `play`: a page that drives a model by keyboard, gamepad or mouse."""

from pathlib import Path
from typing import Annotated

import typer


def play(  # noqa: PLR0913 (a command's options are its arguments)
    checkpoint: Annotated[
        str, typer.Argument(help="A run's folder, a file of weights, or shipped ones.")
    ],
    shards: Annotated[
        str | None,
        typer.Option(help="Shards whose episodes offer first frames; the run's own if left out."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A first frame; may be given several times.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes any that is free.")
    ] = 8765,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps per frame; the recipe's if left out.")
    ] = None,
    guardrail: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Passes, changes or refuses the frames."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in your browser.")
    ] = True,
) -> None:
    """Drive a model in the browser, by keyboard, gamepad or mouse, until Ctrl-C.

    The page is served to this machine only. What you did can be saved as a video and as a log that
    `infer --replay` shows again.
    """
    from cosmos_wds.play.server import PlayRequest
    from cosmos_wds.play.server import play as serve

    serve(
        PlayRequest(
            checkpoint=checkpoint,
            shards=shards,
            images=tuple(image or ()),
            port=port,
            steps=steps,
            guardrail=guardrail,
            has_browser=browser,
        )
    )
