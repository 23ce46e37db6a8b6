"""The command line. A command reads settings, calls one function, shows the result.

What is heavy (torch, numpy, pydantic) is imported inside the commands, so that --help answers at
once. Words and progress go to stderr; the result, a path, goes to stdout.
"""

import errno
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cosmos_wds import __version__
from cosmos_wds.cli_bench import bench
from cosmos_wds.cli_download import Changes, download
from cosmos_wds.cli_eval import evaluate
from cosmos_wds.cli_infer import infer
from cosmos_wds.cli_play import play
from cosmos_wds.cli_shard import shard
from cosmos_wds.cli_tools import tools
from cosmos_wds.errors import ConfigError, UserError


def _examples(*commands: str) -> str:
    """What stands below a command's help, one command a line."""
    return "\n\n".join(["Example:" if len(commands) == 1 else "Examples:", *commands])


app = typer.Typer(
    help="From robot videos with actions to a world model that you can drive.",
    epilog="Start here; it needs no network and no GPU:\n\ncosmos-wds demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(tools)
app.add_typer(bench, name="bench")

REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
"""What a disk may refuse, told in one line; any other OSError keeps its traceback."""


class _Ended(Exception):
    """Processes that did the work have ended, and said what there was to say."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> None:
    """Run and end the process: 0 done, 1 the user's to mend, 2 misused options, 130 Ctrl-C."""
    try:
        app(prog_name="cosmos-wds")
    except UserError as error:
        _leave(1, f"error: {error}")
    except _Ended as ended:
        sys.exit(ended.code)
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of Ctrl-C
            _leave(130, "interrupted")
        raise
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _leave(1, f"error: {place}{error.strerror}")


def _leave(code: int, message: str) -> None:
    """End with one message, which under torchrun comes from rank zero alone."""
    if _is_rank_zero():
        typer.echo(message, err=True)
    else:
        time.sleep(1.0)  # torchrun ends all ranks when one exits: let rank zero speak
    sys.exit(code)


def _show(result: object) -> None:
    """Print a command's result to stdout, where a script can read it."""
    if _is_rank_zero():
        typer.echo(result)


def _is_rank_zero() -> bool:
    from cosmos_wds.console import is_rank_zero

    return is_rank_zero()


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cosmos-wds {__version__}")
        raise typer.Exit


@app.callback()
def cosmos_wds(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """From robot videos with actions to a world model that you can drive."""


app.command(
    epilog=_examples(
        "cosmos-wds download",
        "cosmos-wds download bridge --mirror --split train,val --episodes 100",
        "cosmos-wds download demo --set generate.train=20",
        "cosmos-wds download cosmos-predict1-7b-video2world",
    )
)(download)


app.command(
    epilog=_examples(
        "cosmos-wds shard",
        "cosmos-wds shard my/recordings my/shards --workers 4",
        "cosmos-wds shard my/recordings s3://bucket/shards --engine ray --dry-run",
        "cosmos-wds shard --latents my/shards my/latents --tokenizer cosmos-tiny",
    )
)(shard)


@app.command(
    epilog=_examples(
        "cosmos-wds train",
        "cosmos-wds train bridge --plan --gpus 8",
        "cosmos-wds train bridge --set train.steps=5000 --set name=short",
        "cosmos-wds train bridge --nodes 2 --node-rank 0 --rendezvous node0:29500",
    )
)
def train(  # noqa: PLR0913 (a command's options are its arguments)
    recipe: Annotated[
        str, typer.Argument(help="A recipe: bridge, demo, or a file of yours.")
    ] = "bridge",
    processes: Annotated[
        int, typer.Option(help="On this machine; one for each GPU if left out.", show_default=False)
    ] = 0,
    nodes: Annotated[int, typer.Option(help="Machines that train together.")] = 1,
    node_rank: Annotated[int, typer.Option(help="Which of them this is, from 0.")] = 0,
    rendezvous: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the first machine, on all of them.")
    ] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Train nothing: say what memory, time and disk it takes.")
    ] = False,
    gpus: Annotated[
        int, typer.Option(help="With --plan: on how many; this machine's.", show_default=False)
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="With --plan: as one line of JSON.")] = False,
    changes: Changes = None,
) -> None:
    """Train, or post-train, the model of a recipe on its shards, on every GPU of this machine.

    The same command again goes on from the last checkpoint. Ctrl-C saves one first.
    """
    from cosmos_wds.recipe import load_recipe

    settings = load_recipe(recipe, changes or ())
    if plan:
        from cosmos_wds.train.plan_show import show_plan

        return show_plan(settings, gpus=gpus, as_json=json)
    if gpus or json:
        raise ConfigError("train: --gpus and --json go with --plan")
    from cosmos_wds.train.launch import plan_start, run_processes

    start = plan_start(
        settings.train,
        processes=processes,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
    )
    if start is not None:
        raise _Ended(run_processes(start))
    from cosmos_wds.train.loop import train as run

    _show(run(settings))


app.command(
    epilog=_examples(
        "cosmos-wds infer --compare",
        "cosmos-wds infer my/run --episodes val:0-15 --compare",
        'cosmos-wds infer my/run --image first.png --script "x+0.02*5, close"',
        "cosmos-wds infer my/run --image first.png --npy actions.npy --seed 0-3",
    )
)(infer)


app.command(
    "eval",
    epilog=_examples(
        "cosmos-wds eval my/run --shards my/shards",
        "cosmos-wds eval my/run --episodes val:0-15 --set eval.actions=32",
        "cosmos-wds eval my/run --write-list test.txt",
        "cosmos-wds eval my/run --set eval.list=test.txt --json",
    ),
)(evaluate)


app.command(
    epilog=_examples(
        "cosmos-wds play my/run",
        "cosmos-wds play my/run --shards my/shards --port 9000",
        "cosmos-wds play my/run --image first.png --no-browser",
    )
)(play)


@app.command(epilog=_examples("cosmos-wds demo --output outputs/demo"))
def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, run, videos and report.")] = Path(
        "outputs/demo"
    ),
    changes: Changes = None,
) -> None:
    """The whole way in one command, on a laptop: data, shards, training, rollouts, report.

    Needs no network and no GPU.
    """
    from cosmos_wds.demo import demo as run

    _show(run(output, changes or ()))
