"""What fewer sampler steps gain and lose: `cosmos-wds bench rollout --steps-table`.

The same rollouts under the same noise, from few steps to many: how long a frame takes, how far the
pictures are from those of the most steps and, where the inputs are recordings, from the truth.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from cosmos_wds.console import progress_bar
from cosmos_wds.rollout.bench_rollout import BATCH, RolloutBenchRequest, mean_psnr, opened
from cosmos_wds.rollout.bench_ways import rolled_by, whole_calls
from cosmos_wds.rollout.rollout import Rolled
from cosmos_wds.train.bench_model import seconds_of

FEWER, MOST = (1, 2, 3, 5, 8, 12, 20), 35
"""Sampler steps to try; and the reference's."""


@dataclass(frozen=True)
class StepsRow:
    """Rollouts of one number of sampler steps."""

    steps: int
    seconds: float
    """A frame."""
    psnr: float | None
    """Of its pictures against those of the most steps, dB; None: they are equal."""
    psnr_truth: float | None
    """Against the recordings; None: there are none."""


def bench_steps(request: RolloutBenchRequest) -> tuple[StepsRow, ...]:
    """Roll out in ever more steps; `request.steps` is the most, by default 35. Raises UserError."""
    model, inputs = opened(request)
    most = request.steps or MOST
    frames = whole_calls(request.frames, model.recipe.call_window.frames - 1)
    batch = min(request.batch or BATCH, len(inputs.first))
    roll = rolled_by(model.run, inputs, batch)
    roll(frames, 1)  # the first is slower
    found: dict[int, tuple[Rolled, float]] = {}
    with progress_bar() as progress:
        tried = [*(steps for steps in FEWER if steps < most), most]
        task = progress.add_task("sampler steps", total=len(tried), note="")
        for steps in tried:
            made: list[Rolled] = []
            taken = [
                seconds_of(lambda n=steps: made.append(roll(frames, n)), model.device)  # noqa: B023
                for _ in range(request.repeats)
            ]
            found[steps] = made[0], min(taken) / (batch * frames)
            progress.advance(task)
    truth = None if inputs.truth is None else inputs.truth[:batch, : frames + 1]
    best = found[most][0].frames
    return tuple(
        StepsRow(
            steps,
            seconds,
            mean_psnr(one, best),
            None if truth is None else mean_psnr(one, truth),
        )
        for steps, (one, seconds) in found.items()
    )


def steps_table(rows: Sequence[StepsRow], *, as_json: bool) -> Table | str:
    """The rows to print."""
    if as_json:
        return "\n".join(json.dumps(asdict(row)) for row in rows)
    table = Table()
    most = f"PSNR to {rows[-1].steps} steps"
    for heading in ("sampler steps", "s/frame", most, "to the truth"):
        table.add_column(heading, justify="right")
    for row in rows:
        psnr = "equal" if row.psnr is None else f"{row.psnr:.1f}"
        truth = "" if row.psnr_truth is None else f"{row.psnr_truth:.1f}"
        table.add_row(str(row.steps), f"{row.seconds:.4g}", psnr, truth)
    return table
