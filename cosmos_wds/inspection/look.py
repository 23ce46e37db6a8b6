"""`cosmos-wds inspect PATH`: what was asked for, one after the other."""

import os
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from cosmos_wds.console import result, say
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.inspection.overview import overview
from cosmos_wds.inspection.player import write_player
from cosmos_wds.inspection.reach import plain, samples
from cosmos_wds.inspection.sheet import write_sheet
from cosmos_wds.inspection.tables import tables
from cosmos_wds.inspection.verify import verify


@dataclass(frozen=True)
class InspectRequest:
    """What to do with a shard set."""

    path: str
    output: Path
    """Folder of the sheet and the page."""
    html: bool = False
    verify: bool = False
    """Read everything again; then nothing else is shown unless it is asked for."""
    json: bool = False
    episodes: int = 4
    """Of each split, on the sheet and on the page."""
    workers: int = 0


def inspect(request: InspectRequest) -> None:
    """Print what a set holds, write its contact sheet and page, or verify it.

    Raises DataError where there is no set, or where verifying has found a problem.
    """
    if request.verify:
        _verify(request)
    if request.html or not request.verify:
        _look(request)


def _verify(request: InspectRequest) -> None:
    done = verify(request.path, workers=request.workers)
    if request.json:
        result.print(done.to_json(), markup=False)
    else:
        for line in done.lines():
            result.print(plain(line), markup=False)
    verdict = done.verdict()
    if not request.json:
        result.print(plain(verdict), markup=False)


def _look(request: InspectRequest) -> None:
    found = overview(request.path)
    if request.json:
        result.print(found.to_json(), markup=False)
    else:
        for table in tables(found):
            result.print(table.to_rich())
    if request.json and not request.html:
        return
    shown = list(samples(ShardIndex.read(request.path), request.episodes))
    base = request.output / "-".join(Path(os.path.abspath(request.path)).parts[-2:])
    sheet, page = base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.html")
    if write_sheet(sheet, shown):
        say(f"contact sheet: {escape(str(sheet))}")
    else:
        say("no videos, so there is no contact sheet")
    if request.html:
        write_player(page, found, shown)
        say(f"page: {escape(str(page))}")
