"""A plan as tables and sentences: the body of `cosmos-wds train --plan`."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from cosmos_wds.console import result
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.plan import OnCpu, OnGpu, Plan, plan


def show_plan(recipe: Recipe, *, gpus: int = 0, as_json: bool = False) -> None:
    """Plan a recipe's run on so many GPUs (0: this machine's) and print that to stdout.

    Raises ConfigError as `plan` does.
    """
    planned = plan(recipe, gpus)
    if as_json:
        result.print(planned.to_json(), markup=False)
        return
    for line in plan_lines(planned):
        result.print(line)


def plan_lines(planned: Plan) -> Iterator[Table | str]:
    """What to print of a plan, in order."""
    number = "1 GPU" if planned.gpus == 1 else f"{planned.gpus} GPUs ({planned.parallel})"
    yield f"[bold]{escape(planned.recipe)}[/bold] on {number}, nothing trained yet"
    yield _facts(planned)
    yield _memory(planned)
    yield _gpus(planned)
    yield from _advice(planned)
    if planned.on_cpu:
        yield _on_cpu(planned.on_cpu)
    yield from (f"assumed: {line}" for line in planned.assumed)


def _facts(planned: Plan) -> Table:
    table = Table(show_header=False)
    work = planned.operations
    again = f", computed again {_operations(work.recomputed)}" if work.recomputed else ""
    rows = {
        "parameters": f"{planned.trained:,} trained, {planned.frozen:,} frozen",
        "batch": f"{planned.batch} windows; {planned.micro_batch} at a time on a GPU, in "
        f"{planned.precision}, checkpointing {planned.checkpointing}",
        "a step": f"forward {_operations(work.forward)}, backward "
        f"{_operations(work.backward)}{again}",
        "steps": f"{planned.steps:,}; {_epochs(planned)}",
        "a checkpoint": f"{_size(planned.checkpoint)}; up to {planned.checkpoints} on the disk at "
        f"a time: {_size(planned.checkpoints * planned.checkpoint)}",
        "at the end": " and ".join(f"{n} {_size(s)}" for n, s in planned.weights_files.items()),
    }
    for row in rows.items():
        table.add_row(*row)
    return table


def _epochs(planned: Plan) -> str:
    if planned.steps_per_epoch is None:
        return f"of an epoch unknown: {escape(planned.no_epoch)}"
    epochs = planned.steps / planned.steps_per_epoch
    return f"{planned.steps_per_epoch:,} an epoch, so {epochs:.1f} epochs"


def _memory(planned: Plan) -> Table:
    table = Table(title="memory, at the peak of a step", title_justify="left")
    table.add_column("of each GPU")
    table.add_column("", justify="right")
    for part, size in sorted(planned.parts.items(), key=lambda item: -item[1]):
        if size >= 1e-3 * planned.needed:
            table.add_row(part, _size(size))
    table.add_section()
    table.add_row("in total", _size(planned.needed))
    table.add_section()
    for part, size in planned.host.items():
        table.add_row(f"of the CPU, beside it: {part}", _size(size))
    return table


def _on_cpu(row: OnCpu) -> str:
    parts = dict(row.parts)
    python, pieces = (parts.pop(name) for name in ("Python and torch", "pieces of freed memory"))
    machine = f" of {_size(row.memory)}" if row.memory else ""
    return (
        f"on this machine's CPU: {_size(row.needed)}{machine} for the process at the peak of a "
        f"step, {_size(row.needed + row.saving)} while a checkpoint is written: Python and torch "
        f"{_size(python)}, tensors {_size(sum(parts.values()))}, pieces of freed memory "
        f"{_size(pieces)}"
    )


def _gpus(planned: Plan) -> Table:
    table = Table(title="on", title_justify="left")
    for heading in ("", "memory", "fits", "a step", "the run"):
        table.add_column(heading, justify="left" if heading in ("", "fits") else "right")
    for row in planned.on_gpus:
        fits = "[green]yes[/green]" if row.fits else "[red]no[/red]"
        table.add_row(row.gpu, _size(row.memory), fits, _seconds(row), _hours(row))
    return table


def _advice(planned: Plan) -> Iterator[str]:
    lost = [row.gpu for row in planned.on_gpus if not row.fits]
    if not lost:
        return
    if planned.advice:
        yield "where it does not fit, the fastest changes with which it does:"
    for row in planned.advice:
        number = "1 GPU" if row.gpus == 1 else f"{row.gpus} GPUs"
        changes = " ".join(f"--set train.{name}={_toml(v)}" for name, v in row.changes.items())
        yield (
            f"  {row.gpu}: {number}, {_size(row.needed)}, {_seconds(row)} a step, {_hours(row)}: "
            f"{changes}"
        )
    rest = [gpu for gpu in lost if gpu not in {row.gpu for row in planned.advice}]
    if rest:
        yield f"nothing that was tried makes it fit {', '.join(rest)}"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(row: OnGpu) -> str:
    return f"{row.seconds_per_step:.3g} s"


def _hours(row: OnGpu) -> str:
    if row.hours >= 10:
        return f"{row.hours:,.0f} h"
    return f"{row.hours:.2g} h" if row.hours >= 1 else f"{60 * row.hours:.2g} min"


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 0.9995e9 else f"{count / 1e6:.3g} MB"


def _operations(count: int) -> str:
    return f"{count / 1e15:.3g} PFLOP" if count >= 1e15 else f"{count / 1e12:.3g} TFLOP"
