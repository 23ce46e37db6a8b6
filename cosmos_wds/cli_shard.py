"""The command line's `shard`: recordings -> shards, and shards -> latents."""

from typing import Annotated, Literal

import typer

from cosmos_wds.cli_download import Changes
from cosmos_wds.errors import ConfigError


def shard(  # noqa: PLR0913 (a command's options are its arguments)
    source: Annotated[
        str | None, typer.Argument(help="Recordings, a folder or URL; the pipeline's if left out.")
    ] = None,
    shards: Annotated[
        str | None, typer.Argument(help="Shards to write, a folder or URL; the pipeline's too.")
    ] = None,
    pipeline: Annotated[
        str, typer.Option(help="A pipeline: bridge, demo, or a file of yours.")
    ] = "bridge",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a bad episode instead of listing it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made, and write nothing.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes; every core if left out.", show_default=False)
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Who works: this machine, or a Ray cluster.")
    ] = "local",
    latents: Annotated[
        bool, typer.Option("--latents", help="From finished shards to a set of their latents.")
    ] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Only the index, of a folder of our tars.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of --latents: its folder, a run's, or cosmos-tiny.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Of --latents: rows of pixels that are encoded.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Of --latents, as height.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Of --latents: where it encodes; on every GPU, else the CPU."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Write recordings as tar shards with an index; with --latents, shards as latents.

    Goes on where it stopped. Bad episodes are told and listed in rejected.jsonl. With --index-only
    SOURCE are shards that have lost their index.json, and get it again.
    """
    if index_only and (shards or latents or strict or dry_run or engine == "ray"):
        raise ConfigError(
            "--index-only takes the folder of shards, --pipeline and --set, and nothing else"
        )
    if (source is None) != (shards is None) and not index_only:
        raise ConfigError(f"shard {source}: name the folder of shards too, or neither of the two")
    of_latents = {"tokenizer": tokenizer, "height": height, "width": width, "device": device}
    paths = {"source.path": source, "shards.path": shards}
    if latents or index_only:
        paths = {"shards.path": source, "latents.path": shards}
    if not latents and any(value is not None for value in of_latents.values()):
        raise ConfigError(f"{', '.join(f'--{name}' for name in of_latents)}: only with --latents")
    from cosmos_wds.config import override
    from cosmos_wds.pipeline import load_pipeline

    settled = {**paths, "shards.workers": workers}
    settled |= {f"latents.{name}": value for name, value in of_latents.items()}
    given = [override(key, value) for key, value in settled.items() if value is not None]
    settings = load_pipeline(pipeline, [*(changes or ()), *given])
    if index_only:
        from cosmos_wds.prepare.index_only import write_index

        typer.echo(write_index(settings))
        return
    if latents:
        if engine == "ray":
            raise ConfigError("--engine ray: not with --latents, which works on this machine")
        from cosmos_wds.prepare.latents import write_latents

        typer.echo(write_latents(settings, strict=strict, dry_run=dry_run))
        return
    from cosmos_wds.prepare import shard as write_shards
    from cosmos_wds.prepare.engines import local_engine, ray_engine

    who = ray_engine() if engine == "ray" else local_engine(settings.shards.workers)
    typer.echo(write_shards(settings, strict=strict, engine=who, dry_run=dry_run))
