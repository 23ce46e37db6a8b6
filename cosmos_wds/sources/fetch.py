"""The body of `cosmos-wds download`: a pipeline's weights and recordings, fetched or made."""

import difflib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rich.markup import escape

from cosmos_wds.config import apply_overrides, find_toml, parse, shipped_folder
from cosmos_wds.console import say, track
from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import DownloadSettings, GenerateSettings, Pipeline, load_pipeline
from cosmos_wds.sources.archive import MARKER, extract
from cosmos_wds.sources.demo import generate
from cosmos_wds.sources.http import download
from cosmos_wds.sources.hub import fetch_weights
from cosmos_wds.sources.weights import find_repository, short_names


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
    it. What is there already is left alone. Raises UserError.
    """
    root = Path(pipeline.source.path)
    if pipeline.source.kind != "demo" and not pipeline.download.url:
        raise ConfigError(
            f"pipeline {pipeline.name}: download.url is empty, so there is nothing to fetch; put "
            f"annotation/ and videos/ into {root} and go on with `cosmos-wds shard`"
        )
    for repository in pipeline.download.weights:
        fetch_weights(repository, Path(pipeline.download.weights_to))
    if pipeline.source.kind == "demo":
        make_episodes(pipeline.generate, root, workers=workers)
    else:
        fetch_archive(pipeline.download, root)
    return root


def make_episodes(settings: GenerateSettings, root: Path, *, workers: int | None = None) -> None:
    """Generate what is missing of the synthetic data set."""
    episodes = generate(root, **settings.model_dump(), workers=workers)
    total = settings.train + settings.val
    for _ in track(episodes, "episodes", total=total):
        pass
    say(f"{escape(str(root))}: {total} episodes")


def fetch_archive(settings: DownloadSettings, root: Path) -> None:
    """Download and unpack; the archive stays beside `root`, and may be deleted afterwards."""
    name = PurePosixPath(unquote(urlsplit(settings.url).path)).name
    if not name:
        raise ConfigError(f"download.url = {settings.url!r}: ends in no file name")
    archive = root.parent / name
    if (root / MARKER).is_file() and not archive.exists():
        say(f"{escape(str(root))}: already unpacked; its archive was deleted; nothing to do")
        return
    download(settings.url, archive, expected_bytes=settings.bytes, sha256=settings.sha256)
    extract(archive, root, strip=settings.strip)
