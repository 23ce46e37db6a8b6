"""A run's state to disk and back: every rank its part, in the background, on any number of ranks.

torch's distributed checkpoint in safetensors files, so that nothing in it is pickled:

    reg.NAME           weights and buffers, float32, under our names; no frozen ones (lora.py)
    ema.NAME           their running average
    optim.KEY.NAME     what the optimizer keeps for a parameter
    run.json           step, the loader's position, digests: all else that a run goes on from

A save copies the state into the CPU's memory, and training goes on while threads of all ranks write
the copy. What random numbers a step draws is a function of its number (diffusion/noise.py), so no
generator's state is kept.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.names import to_released
from cosmos_wds.model.weights import local_part
from cosmos_wds.train.checkpoint import (
    appearing,
    checkpoint_folder,
    kept,
    temporary_folder,
    way_back,
    weights_file,
    write_file,
)
from cosmos_wds.train.parallel import Ranks

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process

Complete = Callable[[dict[str, Tensor]], dict[str, Tensor]]

FACTS = "run.json"
FILE_BYTES = 2**30
"""Of one file, about: its tensors are serialised together, which takes as much memory again."""


class Saver:
    """Writes checkpoints of one run, one at a time. On all ranks, in step with each other.

    step        of the last one that was begun
    published   of the last one that is whole on the disk
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, step: int = 0) -> None:
        """Checkpoints go to `folder`; besides the last, `keep` older ones stay (0: all).

        step   of the latest one that is there; 0: none
        """
        self._folder, self._ranks, self._keep = folder, ranks, keep
        # Its own group: the thread's messages must not meet those of training.
        self._group = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None
        self.step = self.published = step

    def start(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Begin to save; `tensors` may change as soon as this returns.

        Waits for the save before, if that still runs. Raises CheckpointError as `wait` does.
        """
        self.wait()
        stager = DefaultStager(StagingOptions(False, False, False, False))  # in torch 2.11 for once
        copy = stager.stage({name: _at_least_1d(t) for name, t in tensors.items()})
        assert not isinstance(copy, Future)
        self.step = step
        self._running = self._thread.submit(self._write, step, copy, dict(facts))

    def check(self) -> None:
        """Raise what went wrong with a save that has ended meanwhile."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is published.

        Raises CheckpointError when it could not be written; the former one is still the latest.
        """
        running, self._running = self._running, None
        if running is None:
            return
        try:
            running.result()
        except OSError as error:
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {self.step} could not be written: "
                f"{error.strerror or error}; {kept(self._folder)}; make room or mend the folder, "
                "then run the same command again"
            ) from error
        self.published = self.step

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread; a save that runs is finished first."""
        self._thread.shutdown()

    def _write(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write and publish. Raises OSError."""
        with ExitStack() as stack:
            folder, problem = temporary_folder(self._folder, step), None
            if self._ranks.rank == 0:
                try:
                    stack.enter_context(appearing(self._folder, step, keep=self._keep))
                except OSError as error:
                    problem = error
            self._agree(problem)
            writer = HuggingFaceStorageWriter(
                str(folder), fqn_to_index_mapping=_spread(tensors), save_distributed=True
            )
            try:
                dcp.save(
                    tensors,
                    storage_writer=writer,
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            except CheckpointException as error:
                raise _reason(error) from None
            if self._ranks.rank == 0:
                text = json.dumps(facts, indent=1) + "\n"
                write_file(folder / FACTS, lambda file: file.write(text.encode()))

    def _agree(self, problem: OSError | None) -> None:
        """Go on together, or not at all."""
        if self._group is not None:
            failed = torch.tensor(int(problem is not None))
            dist.all_reduce(failed, group=self._group)
            if failed and problem is None:
                raise OSError("another rank could not write")
        if problem is not None:
            raise problem


def restore_tensors(folder: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors from a checkpoint, in place; of a DTensor, this rank's part. On all ranks.

    Raises CheckpointError, before anything is filled, when names or shapes are not what it holds.
    """
    held = _metadata(folder).state_dict_metadata
    wrong = sorted(held.keys() ^ targets.keys()) + [
        f"{name} {tuple(held[name].size)}"
        for name, target in targets.items()
        if name in held and held[name].size != _at_least_1d(target).shape
    ]
    if wrong:
        raise CheckpointError(
            f"{folder}: holds another state than this run's (first: {wrong[0]}); it is damaged, "
            f"or of another model; {_way_back(folder)}"
        )
    views = {name: _at_least_1d(target) for name, target in targets.items()}
    try:
        dcp.load(
            views,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=ranks.world == 1,
        )
    except (CheckpointException, SafetensorError, OSError) as error:
        raise _damaged(folder, error) from None


def held_names(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What a checkpoint holds: name -> shape and type. Raises CheckpointError when damaged."""
    facts = _metadata(folder).state_dict_metadata
    return {name: (one.size, one.properties.dtype) for name, one in facts.items()}


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of run.json. Raises CheckpointError when it is missing or damaged."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("iteration", "loader", "digests", "recent")}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path}: not the state of a run of cosmos-wds; {_way_back(folder)}"
        ) from None


def read_weights(
    folder: Path, kind: Literal["reg", "ema"], complete: Complete = dict
) -> dict[str, Tensor]:
    """All weights of a checkpoint, whole, under released names; what the average lacks, as trained.

    complete   makes all of the network's weights of those that a checkpoint keeps (run.completion)

    They refer to the files where one rank wrote them whole. Raises CheckpointError when damaged.
    """
    metadata = _metadata(folder)
    names = {n.partition(".")[2]: n for n in metadata.state_dict_metadata if n.startswith("reg.")}
    for name in list(names) if kind == "ema" else ():
        if f"ema.{name}" in metadata.state_dict_metadata:
            names[name] = f"ema.{name}"
    try:
        held = {name: _whole(metadata, stored) for name, stored in names.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from None
    return to_released(complete(held))


def write_weights(folder: Path, step: int, complete: Complete = dict) -> None:
    """Write a checkpoint's weights, and their average if it has one, as the reference's files.

    Files that are there are left. One set of weights is in memory at a time, and that only where
    several ranks wrote them. Raises CheckpointError when the disk is full or they cannot be read.
    """
    held = checkpoint_folder(folder, step)
    has_average = any(name.startswith("ema.") for name in held_names(held))
    for kind in ("reg", "ema") if has_average else ("reg",):
        path = weights_file(folder, step, kind)
        if path.is_file():
            continue
        weights = read_weights(held, kind, complete)
        try:
            write_file(path, partial(torch.save, weights))
        except OSError as error:
            raise CheckpointError(
                f"{path}: could not be written: {error.strerror or error}; the checkpoint {held} "
                "is whole: make room, then run the same command again"
            ) from error
        del weights  # before the next are read


def _whole(metadata: Metadata, name: str) -> Tensor:
    """One tensor, put together from the ranks' parts."""
    facts = metadata.state_dict_metadata[name]
    places = metadata.storage_data
    parts = [(c, places[MetadataIndex(name, c.offsets)].relative_path) for c in facts.chunks]
    if len(parts) == 1:
        return _stored(parts[0][1], name)
    result = torch.empty(facts.size, dtype=facts.properties.dtype)
    for chunk, path in parts:
        where = tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
        result[where] = _stored(path, name)
    return result


def _stored(path: str, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _metadata(folder: Path) -> Metadata:
    """What lies where in a checkpoint, as the heads of its files say."""
    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: BaseException) -> CheckpointError:
    reason = _reason(error) if isinstance(error, CheckpointException) else error
    what = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
    return CheckpointError(f"{folder}: a damaged checkpoint: {what}; {_way_back(folder)}")


def _way_back(folder: Path) -> str:
    return way_back(folder.parent, int(folder.name.rpartition("_")[2]))


def _reason(error: CheckpointException) -> BaseException:
    """The first failure of a distributed save or load."""
    return next(iter(error.failures.values()))[0]


def _spread(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> number of its file, from 1, so that no file of a rank is much above FILE_BYTES."""
    files, filled = {}, 0
    for name, tensor in tensors.items():
        filled += local_part(tensor).nbytes
        files[name] = 1 + filled // FILE_BYTES
    return files


def _at_least_1d(tensor: Tensor) -> Tensor:
    """A view; safetensors' slices, which a load reads by, have no way to name a single number."""
    return tensor.reshape(1) if tensor.ndim == 0 else tensor
