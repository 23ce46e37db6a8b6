"""What a line of shell that starts cosmos-wds means, found out without running it."""

import os
import shlex
import sys
from pathlib import Path

from typer.main import get_command

from cosmos_wds.cli import app
from cosmos_wds.model.show import find_subject
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.recipe import load_recipe
from cosmos_wds.sources.weights import find_repository
from tests import forked

ROOT = Path(__file__).parent.parent
TORCHRUN = ("torchrun", "--nproc-per-node")


def parse(line):
    """A line's command and parameters; fails for one that cosmos-wds would refuse as misused."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node" and words[2].isdecimal(), line
        assert words[3:5] == ["-m", "cosmos_wds"], line
        words = words[4:]
    assert words[0] in ("cosmos-wds", "cosmos_wds"), line
    command, name, rest = get_command(app).commands[words[1]], words[1], words[2:]
    while hasattr(command, "commands"):  # a group: inspect model, bench model
        if name == "inspect" and rest[0] not in command.commands:
            rest = ["shards", *rest]
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    return name, command.make_context(name, rest).params


def check(line):
    """Parse a line, and load the recipe or pipeline that it names, with its overrides."""
    name, params = parse(line)
    changes = params.get("changes") or ()
    if name == "train":
        load_recipe(params["recipe"], changes)
    elif name == "shard":
        load_pipeline(params["pipeline"], changes)
    elif name == "download" and not find_repository(params["name"]):
        load_pipeline(params["name"], changes)
    elif name == "bench loader":
        load_recipe(params["recipe"], changes)
    elif name in ("inspect model", "bench model"):
        find_subject(params["name"], params["preset"])
    elif name == "demo":
        load_recipe("demo", changes)
    return name, params


def environment(**changes):
    """This process's variables with the package importable from any folder, and plain output."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    wanted = {"PYTHONPATH": path, "COLUMNS": "120", "TERM": "dumb", **changes}
    dropped = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "FORCE_COLOR"}
    return {k: v for k, v in {**os.environ, **wanted}.items() if k not in dropped or k in changes}


def run(*words, cwd, timeout=120, **variables):
    """Run cosmos-wds in a process of its own; returns it, with output as text."""
    words = [sys.executable, "-m", "cosmos_wds", *words]
    return forked.run(words, cwd=cwd, env=environment(**variables), timeout=timeout)
