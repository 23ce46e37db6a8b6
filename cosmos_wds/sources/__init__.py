"""Where episodes come from: the name of a layout -> how to open it, a plain dictionary.

A source lists what a split holds and reads it; that is all that sharding asks of it.
"""

import importlib
from collections.abc import Callable

from cosmos_wds.data.episode import Source
from cosmos_wds.data.storage import storage
from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources.bridge import BridgeSource


def _open_bridge(pipeline: Pipeline) -> Source:
    source = pipeline.source
    return BridgeSource(storage(source.path), source.splits, name=source.kind)


SOURCES: dict[str, Callable[[Pipeline], Source]] = {
    "bridge": _open_bridge,
    "demo": _open_bridge,  # generated in the same layout
}


def open_source(pipeline: Pipeline) -> Source:
    """The source that a pipeline's [source] names.

    Raises ConfigError when its MODULE:FUNCTION cannot be imported.
    """
    kind = pipeline.source.kind
    if kind in SOURCES:
        return SOURCES[kind](pipeline)
    module, _, name = kind.partition(":")
    try:
        found: Callable[[Pipeline], Source] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"source.kind = {kind!r}: cannot be imported: {error}") from None
    return found(pipeline)
