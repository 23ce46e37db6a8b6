"""One measurement of one loader, in the process that belongs to it.

CPU time is that of all its processes and threads, from the first request for a batch to the last
batch: the figure to trust where cores are shared with others. What decoding, resizing and copying
take of it is timed apart, on some episodes, one after the other, and multiplied by how many
episodes the pass decoded and how many windows it cut.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cosmos_wds.data.cache import CachedStorage, Traffic
from cosmos_wds.data.index import LatentFormat, SplitIndex, video_member
from cosmos_wds.data.loader import Loader, open_loader
from cosmos_wds.data.video import decode, resize
from cosmos_wds.recipe import Recipe, WindowSettings
from cosmos_wds.train import meter
from cosmos_wds.train.bench_reference import reference_loader

REFERENCE_SAMPLES = 200  # take it as long as thousands take ours
TIMED_EPISODES = 12


@dataclass(frozen=True, kw_only=True)
class LoaderBenchRequest:
    """What to measure."""

    recipe: Recipe
    samples: int = 0
    """Windows that ours reads, rounded down to whole batches; 0: an epoch."""
    repeats: int = 3
    """Measurements of each; their medians count."""
    recordings: Path | None = None
    """The folder that the reference's loader reads; None leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One loader's figures. A sample is a window; kB and MB are decimal; shares are of CPU time."""

    loader: str
    samples: float
    first_batch_seconds: float
    """From the start of the process, with Python's and torch's own."""
    samples_per_second: float
    cpu_ms_per_sample: float
    read_kb_per_sample: float | None
    """From files, or of the shards at a URL."""
    fetched_kb_per_sample: float | None = None
    """Over the network."""
    windows_per_decode: float | None = None
    """How often a decoded episode was used before it was given up."""
    peak_mb: float
    decode_share: float | None = None
    resize_share: float | None = None
    copy_share: float | None = None


@dataclass(frozen=True)
class Counted:
    """What the batches of a loader took."""

    samples: int
    first: float
    """Seconds from the start of the process to the first batch."""
    seconds: float
    cpu: float
    """Seconds."""
    read: int | None
    """Bytes."""


def measure_ours(request: LoaderBenchRequest, began: float) -> Pass:
    """Read the recipe's shards as training does. `began`: when the process was started."""
    recipe = request.recipe
    with open_loader(recipe) as loader:
        batch, most = recipe.train.batch, loader.steps_per_epoch
        steps = min(max(1, request.samples // batch), most) if request.samples else most
        counted = _count((len(batch.key) for batch in islice(loader, steps)), began)
        decoded, peak, samples = loader.decoded, meter.peak_bytes(), counted.samples
    spent = _stages(loader, recipe.window) * (decoded, decoded, samples) / counted.cpu
    shares = spent if loader.sets.latents is None else (None, None, spent[2])
    traffic, read = _traffic(loader), counted.read
    if traffic:
        read = traffic.read
    elif loader.sets.latents and read is not None:
        read += samples * _mapped(loader.sets.latents, recipe.window)
    return Pass(
        loader="ours",
        samples=samples,
        first_batch_seconds=counted.first,
        samples_per_second=samples / counted.seconds,
        cpu_ms_per_sample=1e3 * counted.cpu / samples,
        read_kb_per_sample=None if read is None else read / 1e3 / samples,
        fetched_kb_per_sample=traffic.fetched / 1e3 / samples if traffic else None,
        windows_per_decode=samples / decoded if decoded else None,
        peak_mb=peak / 1e6,
        decode_share=shares[0],
        resize_share=shares[1],
        copy_share=shares[2],
    )


def _traffic(loader: Loader) -> Traffic | None:
    """What this process asked of URLs; None when no set lies at one."""
    places = [part.storage for part in loader.sets.parts]
    found = [place.traffic for place in places if isinstance(place, CachedStorage)]
    if not found:
        return None
    names = ("requests", "fetched", "read")
    return Traffic(*(sum(getattr(one, name) for one in found) for name in names))


def _mapped(latents: LatentFormat, window: WindowSettings) -> int:
    """Bytes of a window of latents, which is read without `read`: mapped into memory."""
    return window.frames * int(np.prod(latents.shape)) * np.dtype(latents.dtype).itemsize


def measure_reference(request: LoaderBenchRequest, began: float) -> Pass:
    """Read the recordings as the reference does, in one thread, which costs it least CPU."""
    recipe = request.recipe
    assert request.recordings is not None
    torch.set_num_threads(1)
    batch = recipe.train.batch
    loader = reference_loader(request.recordings, recipe.data.split, recipe.window, batch)
    steps = max(1, min(request.samples or REFERENCE_SAMPLES, REFERENCE_SAMPLES) // batch)
    counted = _count((len(sample["fps"]) for sample in islice(loader, steps)), began)
    return Pass(
        loader="reference",
        samples=counted.samples,
        first_batch_seconds=counted.first,
        samples_per_second=counted.samples / counted.seconds,
        cpu_ms_per_sample=1e3 * counted.cpu / counted.samples,
        read_kb_per_sample=None if counted.read is None else counted.read / 1e3 / counted.samples,
        windows_per_decode=1.0,
        peak_mb=meter.peak_bytes() / 1e6,
    )


def _count(batches: Iterator[int], began: float) -> Counted:
    """Take batches, given by their samples, to the end."""
    cpu, read, start = meter.cpu_seconds(), meter.read_bytes(), time.perf_counter()
    samples = next(batches)
    first = time.time() - began
    samples += sum(batches)
    seconds, cpu = time.perf_counter() - start, meter.cpu_seconds() - cpu
    now = meter.read_bytes()
    return Counted(
        samples, first, seconds, cpu, None if now is None or read is None else now - read
    )


def _stages(loader: Loader, window: WindowSettings) -> np.ndarray:
    """CPU seconds to decode an episode, to resize it, and to copy one window into a batch."""
    sets, spent, windows = loader.sets, np.zeros(3), 0
    rows = np.linspace(0, sets.episodes - 1, TIMED_EPISODES).astype(int).tolist()
    span = 1 + (window.frames - 1) * window.interval
    for row in rows:
        if sets.latents is None:
            spent[:2] += _time_video(*sets.find(row), window)
        frames = loader.read(row).frames
        starts = range(len(frames) - span + 1)
        began = time.process_time()
        for start in starts:
            frames[start : start + span : window.interval].copy()
        spent[2] += time.process_time() - began
        windows += len(starts)
    return spent / (len(rows), len(rows), max(1, windows))


def _time_video(index: SplitIndex, row: int, window: WindowSettings) -> tuple[float, float]:
    """CPU seconds to decode one episode, as all cameras that a window shows, and to resize it."""
    cameras = window.cameras if window.stacked else window.cameras[:1]
    videos = [index.read(row, video_member(camera)) for camera in cameras]
    began = time.process_time()
    pictures = [decode(video, range(index.rows[row].frames)) for video in videos]
    decoded = time.process_time()
    for one in pictures:
        resize(one, window.height, window.width, exact=window.resize == "exact")
    return decoded - began, time.process_time() - decoded
