"""Where episodes come from: the name of a layout -> how to open it, a plain dictionary.

A source lists what a split holds, names it and reads it; that is all that sharding asks of it.
"""

from collections.abc import Callable
from pathlib import Path

from cosmos_wds.data.jobs import Source
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources.bridge import BridgeSource


def _open_bridge(pipeline: Pipeline) -> Source:
    return BridgeSource(
        root=Path(pipeline.source.path),
        splits=pipeline.source.splits,
        fps=pipeline.actions.fps,
        needs_command=pipeline.actions.signal == "command",
        name=pipeline.source.kind,
    )


SOURCES: dict[str, Callable[[Pipeline], Source]] = {
    "bridge": _open_bridge,
    "demo": _open_bridge,  # generated in the same layout
}


def open_source(pipeline: Pipeline) -> Source:
    """The source that a pipeline's [source] names."""
    return SOURCES[pipeline.source.kind](pipeline)
