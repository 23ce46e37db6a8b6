"""How fast a recipe's loader is on this machine: `cosmos-wds bench loader`.

Every measurement (bench_passes.py) has a fresh process to itself, so that start-up and memory are
its own. Ours and the reference's take turns, so that both meet the same machine.
"""

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from statistics import median

from rich.table import Table

from cosmos_wds.console import say
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.train.bench_passes import LoaderBenchRequest, Pass, measure_ours, measure_reference

MEASURES = {"ours": measure_ours, "reference": measure_reference}


@dataclass(frozen=True)
class LoaderBench:
    """Medians of each loader's passes; ours comes first."""

    passes: tuple[Pass, ...]

    @property
    def gain(self) -> float | None:
        """How many times less CPU a sample of ours takes; None without the reference's."""
        if len(self.passes) < 2:
            return None
        return self.passes[1].cpu_ms_per_sample / self.passes[0].cpu_ms_per_sample

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"times_less_cpu": self.gain, "loaders": [*map(asdict, self.passes)]})

    def table(self) -> Table:
        """A line for each figure, a column for each loader."""
        caption = f"{self.gain:.3g} times less CPU a sample" if self.gain else None
        table = Table("", *(one.loader for one in self.passes), caption=caption)
        for field in fields(Pass):
            values = [getattr(one, field.name) for one in self.passes]
            if field.name != "loader" and any(value is not None for value in values):
                table.add_row(field.name.replace("_", " "), *map(_shown, values))
        return table


def bench_loader(request: LoaderBenchRequest) -> LoaderBench:
    """Measure in turns. Raises UserError when the shards or recordings cannot be read."""
    loaders = ["ours"] if request.recordings is None else ["ours", "reference"]
    found: dict[str, list[Pass]] = {loader: [] for loader in loaders}
    for turn in range(1, request.repeats + 1):
        for loader in loaders:
            one = _in_a_process(loader, request)
            found[loader].append(one)
            say(
                f"{loader}, {turn} of {request.repeats}: {one.cpu_ms_per_sample:.3g} CPU ms a "
                f"sample, {one.samples_per_second:.0f} samples/s"
            )
    return LoaderBench(tuple(_medians(passes) for passes in found.values()))


def _in_a_process(loader: str, request: LoaderBenchRequest) -> Pass:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    words = (loader, request, time.time(), theirs)
    process = context.Process(target=_measure_and_send, args=words)
    process.start()
    theirs.close()
    try:
        answer: Pass | UserError = ours.recv()
    except EOFError:
        raise ConfigError(
            f"bench loader: the process that measured {loader} died, perhaps for want of memory"
        ) from None
    finally:
        process.join()
    if isinstance(answer, UserError):
        raise answer
    return answer


def _measure_and_send(
    loader: str, request: LoaderBenchRequest, began: float, to: Connection
) -> None:
    try:
        to.send(MEASURES[loader](request, began))
    except UserError as error:
        to.send(error)


def _medians(passes: Sequence[Pass]) -> Pass:
    """Of each figure that every pass has."""
    table = {field.name: [getattr(one, field.name) for one in passes] for field in fields(Pass)}
    numbers = {name: v for name, v in table.items() if name != "loader" and None not in v}
    return Pass(loader=passes[0].loader, **{name: median(v) for name, v in numbers.items()})


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
