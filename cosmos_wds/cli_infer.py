"""The command line's `infer`."""

from pathlib import Path
from typing import Annotated

import typer

from cosmos_wds.cli_download import Changes
from cosmos_wds.errors import ConfigError

FROM, HOW, LEAVES = "First frame and actions", "How it is rolled out", "What it leaves"
MP4, FOLDER = Path("outputs/infer.mp4"), Path("outputs/infer")


def infer(  # noqa: PLR0913 (a command's options are its arguments)
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A run's folder or a file of weights; the bridge recipe's run."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The first frame, as an image.", rich_help_panel=FROM)
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video whose first frame it is.", rich_help_panel=FROM)
    ] = None,
    annotation: Annotated[
        Path | None,
        typer.Option(help="A recording: its first frame and actions.", rich_help_panel=FROM),
    ] = None,
    episodes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT[:WHICH]",
            help="Episodes of the shards: val:0-15, val:3,7, val:KEY, val; may be repeated.",
            rich_help_panel=FROM,
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_URL",
            help="Of --episodes; the recipe's if left out.",
            rich_help_panel=FROM,
        ),
    ] = None,
    npy: Annotated[
        Path | None,
        typer.Option(
            help="Actions as rows of 7 numbers: metres, radians, gripper.", rich_help_panel=FROM
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help='Actions in words: "x+0.02*5, close, z+5cm yaw-10deg".',
            rich_help_panel=FROM,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG.json", help="What `play` recorded, once more.", rich_help_panel=FROM
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="At most so many actions.", rich_help_panel=FROM)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDS",
            help="Another seed, another rollout; of several, 0-3 or 0,5, one each. 0 if left out.",
            rich_help_panel=HOW,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Sampler steps; the recipe's if left out.", rich_help_panel=HOW),
    ] = None,
    frames_per_call: Annotated[
        int | None,
        typer.Option(help="Generated together; as trained if left out.", rich_help_panel=HOW),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="On actions; the recipe's.", rich_help_panel=HOW)
    ] = None,
    guardrail: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Passes, changes or refuses the frames.",
            rich_help_panel=HOW,
        ),
    ] = None,
    changes: Changes = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"The video to write, or a folder of videos; {MP4}, {FOLDER} with --episodes.",
            show_default=False,
            rich_help_panel=LEAVES,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=LEAVES)
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Put the recording beside the rollout.", rich_help_panel=LEAVES
        ),
    ] = False,
    png: Annotated[
        bool,
        typer.Option("--png", help="The frames as PNGs, in a folder, too.", rich_help_panel=LEAVES),
    ] = False,
    npz: Annotated[
        bool,
        typer.Option("--npz", help="Frames and actions as numbers too.", rich_help_panel=LEAVES),
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(help="Of the video; as the data if left out.", rich_help_panel=LEAVES),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(help="Of the video; the model's if left out.", rich_help_panel=LEAVES),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Of the video; the model's if left out.", rich_help_panel=LEAVES),
    ] = None,
) -> None:
    """Render what follows from first frames under actions: N actions give N + 1 frames.

    A folder of videos goes on where it stopped.
    """
    _one_of(annotation=annotation, episodes=episodes, replay=replay)
    _one_of(npy=npy, script=script, replay=replay)
    _one_of(image=image, video=video, replay=replay)
    has_actions = any(value is not None for value in (annotation, npy, script, replay, episodes))
    if not has_actions and (checkpoint or image or video):
        raise ConfigError(
            "infer: which actions? give --episodes, --annotation, --npy, --script or --replay"
        )
    if shards is not None and not episodes:
        raise ConfigError("--shards: of which episodes? give --episodes too, such as val:0-15")
    if replay and (seed is not None or steps is not None or compare):
        raise ConfigError("--replay: seed and steps are the log's, and there is no recording")
    from cosmos_wds.rollout.asked import Asked
    from cosmos_wds.rollout.choice import read_seeds
    from cosmos_wds.rollout.infer import InferRequest, bridge_episode, bridge_run
    from cosmos_wds.rollout.infer import infer as run

    asked = Asked(
        first=image or video,
        annotation=annotation if has_actions else bridge_episode(),
        npy=npy,
        script=script,
        count=count,
    )
    request = InferRequest(
        checkpoint=checkpoint or (None if replay else bridge_run()),
        asked=asked,
        episodes=tuple(episodes or ()),
        shards=shards,
        replay=replay,
        seeds=read_seeds(seed) if seed is not None else (),
        steps=steps,
        frames_per_call=frames_per_call,
        guidance=guidance,
        guardrail=guardrail,
        settings=tuple(changes or ()),
        output=output or (FOLDER if episodes else MP4),
        overwrite=overwrite,
        compare=compare,
        png=png,
        npz=npz,
        fps=fps,
        height=height,
        width=width,
    )
    typer.echo(run(request))


def _one_of(**options: object) -> None:
    """Raise ConfigError when several of the options are given."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"infer: {' and '.join(given)}: give one of them")
