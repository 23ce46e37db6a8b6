"""The command line's `download`, and the option that its commands share."""

import json
from typing import Annotated

import typer

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Overrule one setting of the file; may be repeated.",
        show_default=False,
    ),
]


def download(
    name: Annotated[
        str,
        typer.Argument(help="A pipeline: bridge, demo, or a file of yours; or NVIDIA's weights."),
    ] = "bridge",
    split: Annotated[
        list[str] | None,
        typer.Option(help="Only episodes of this split: train, val or test; may be repeated."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Only so many of each split, those that come first.")
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Ask the mirror first, which names checksums.")
    ] = False,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="The archive for the published evaluation instead.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Fetch a data set and the weights that belong to it; demo is generated here.

    Goes on where it stopped, adds to what is there, and does nothing when everything is there.

    NAME@REVISION pins weights to a commit, tag or branch.
    """
    from cosmos_wds.sources.fetch import fetch_named

    words = [word.strip() for words in split or () for word in words.split(",")]
    given = {
        "splits": list(dict.fromkeys(words)) or None,
        "episodes": episodes,
        "prefer": "mirror" if mirror else None,
        "archive": "evaluation" if evaluation else None,
    }
    chosen = [f"download.{key}={json.dumps(v)}" for key, v in given.items() if v is not None]
    typer.echo(fetch_named(name, [*(changes or ()), *chosen]))
