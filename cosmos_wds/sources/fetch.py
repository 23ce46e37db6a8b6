"""The body of `cosmos-wds download`: a pipeline's weights and recordings, fetched or made."""

import difflib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rich.markup import escape

from cosmos_wds.config import apply_overrides, find_toml, parse, shipped_folder
from cosmos_wds.console import say, track, warn
from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.pipeline import DownloadSettings, GenerateSettings, Pipeline, load_pipeline
from cosmos_wds.sources.addresses import find_archive
from cosmos_wds.sources.archive import Wanted, is_there, unpack
from cosmos_wds.sources.demo import generate
from cosmos_wds.sources.hub import fetch_weights
from cosmos_wds.sources.parts import Archive
from cosmos_wds.sources.weights import find_repository, short_names
from cosmos_wds.sources.work import Work


def fetch_named(name: str, changes: Sequence[str] = ()) -> Path:
    """Bring what a name stands for: a pipeline, or a model's weights (`NAME@REVISION` pins them).

    Returns the folder of recordings, or of weights. Raises UserError; ConfigError when it is
    neither.
    """
    model = find_repository(name)
    if model is None:
        try:
            find_toml(name, "pipelines")
        except ConfigError:
            raise ConfigError(_unknown(name)) from None
        return fetch(load_pipeline(name, changes))
    spec = f"{model.name}@{model.revision}" if model.revision else model.name
    table = apply_overrides({"name": name}, changes)
    settings = parse(Pipeline, table, origin=name).download
    if settings.splits or settings.episodes:
        raise ConfigError(f"{name}: weights have no episodes to choose from")
    return fetch_weights(spec, Path(settings.weights_to))


def _unknown(name: str) -> str:
    """What to say of a name that is neither a pipeline nor a model, with the nearest of both."""
    pipelines = sorted(path.stem for path in shipped_folder("pipelines").glob("*.toml"))
    models = short_names()
    bare = name.partition("@")[0].rpartition("/")[2].removesuffix(".toml").lower()
    near = difflib.get_close_matches(bare, [*pipelines, *models], n=1)
    there = f"pipelines: {', '.join(pipelines)}; weights: {', '.join(models)}"
    hint = f"did you mean {near[0]}?" if near else there
    return f"{name}: no such file, and no shipped pipeline or known weights of that name; {hint}"


def fetch(pipeline: Pipeline, *, workers: int | None = None) -> Path:
    """Bring everything that a pipeline names; returns the folder of recordings.

    Weights come first: a licence that is not accepted is told before the long download, not after
    it. What is there already is left alone. The evaluation archive comes alone. Raises UserError.
    """
    root, settings = Path(pipeline.source.path), pipeline.download
    if pipeline.source.kind == "demo" and (settings.splits or settings.episodes):
        raise ConfigError(
            f"pipeline {pipeline.name}: its episodes are generated, not chosen; say how many with "
            "--set generate.train=N"
        )
    if settings.archive == "evaluation" and settings.url:
        return fetch_archive(settings, root)
    if pipeline.source.kind != "demo" and not settings.url:
        raise ConfigError(
            f"pipeline {pipeline.name}: download.url is empty, so there is nothing to fetch; put "
            f"annotation/ and videos/ into {root} and go on with `cosmos-wds shard`"
        )
    for repository in settings.weights:
        fetch_weights(repository, Path(settings.weights_to))
    if pipeline.source.kind == "demo":
        make_episodes(pipeline.generate, root, workers=workers)
    else:
        fetch_archive(settings, root)
    return root


def make_episodes(settings: GenerateSettings, root: Path, *, workers: int | None = None) -> None:
    """Generate what is missing of the synthetic data set."""
    episodes = generate(root, **settings.model_dump(), workers=workers)
    total = settings.train + settings.val
    for _ in track(episodes, "episodes", total=total):
        pass
    say(f"{escape(str(root))}: {total} episodes")


def fetch_archive(settings: DownloadSettings, root: Path) -> Path:
    """Bring an archive, or some episodes of it, into `root`; what belongs to the evaluation beside
    it. Returns the folder.
    """
    addresses = [a for a in (settings.url, settings.mirror) if a]
    if settings.archive == "evaluation":
        root = root.with_name("evaluation")
        addresses = [f"{a.rpartition('/')[0]}/{settings.evaluation}" for a in addresses]
        settings = settings.model_copy(update={"bytes": 0, "sha256": ""})
    name = PurePosixPath(unquote(urlsplit(addresses[0]).path)).name
    if not name:
        raise ConfigError(f"download.url = {addresses[0]!r}: ends in no file name")
    splits = settings.splits or (("train", "val", "test") if settings.episodes else ())
    wanted = Wanted(settings.strip, splits, settings.episodes)
    if is_there(root, name, wanted):
        say(f"{escape(str(root))}: already there, from {escape(name)}; nothing to do")
        return root
    if settings.prefer == "mirror":
        addresses.reverse()
    begun = Work(root).address
    if begun == addresses[0] or (begun in addresses and settings.prefer == "url"):
        addresses = [begun]  # the others may have another version: nobody has compared them
    unpack(_find(addresses, name, settings), root, wanted)
    return root


def _find(addresses: Sequence[str], name: str, settings: DownloadSettings) -> Archive:
    """The archive at the first address that answers."""
    for address, following in zip(addresses, [*addresses[1:], ""], strict=True):
        try:
            return find_archive(address, name, settings.bytes, settings.sha256.lower())
        except DownloadError as error:
            if not following:
                raise
            warn(f"{escape(str(error))}; trying {escape(following)}")
    raise AssertionError("there is at least one address")
