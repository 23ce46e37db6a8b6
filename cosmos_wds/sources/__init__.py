"""Where episodes come from: the name of a layout -> how to open it, a plain dictionary.

A source lists what a split holds and reads it; that is all that sharding asks of it.
"""

import os
import sys
from collections.abc import Callable

from cosmos_wds.config import import_function
from cosmos_wds.data.episode import Source
from cosmos_wds.data.storage import storage
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.sources.bridge import BridgeSource
from cosmos_wds.sources.lerobot import open_lerobot
from cosmos_wds.sources.webdataset import open_webdataset


def _open_bridge(pipeline: Pipeline) -> Source:
    source = pipeline.source
    return BridgeSource(storage(source.path), source.splits, name=source.kind)


SOURCES: dict[str, Callable[[Pipeline], Source]] = {
    "bridge": _open_bridge,
    "demo": _open_bridge,  # generated in the same layout
    "lerobot": open_lerobot,
    "webdataset": open_webdataset,
}


def open_source(pipeline: Pipeline) -> Source:
    """The source that a pipeline's [source] names.

    Raises ConfigError when its MODULE:FUNCTION cannot be imported.
    """
    kind = pipeline.source.kind
    if kind in SOURCES:
        return SOURCES[kind](pipeline)
    opened: Source = import_function(kind, "source.kind")(pipeline)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # worker processes inherit it, and import the module too
    return opened
