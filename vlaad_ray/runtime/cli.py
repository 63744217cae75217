"""What every job does on the terminal: call one stage, show the result; and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from vlaad_ray.configs import Location

console = Console(highlight=False)


class HasOut(Protocol):
    @property
    def out(self) -> Location: ...


Config = TypeVar("Config", bound=HasOut)
Summary = TypeVar("Summary")


def run_stage(
    config: Config, stage: Callable[[Config], Summary], show: Callable[[Summary], Table], file: str = "summary.json"
) -> None:
    """Run a stage and show its summary, which it has written into `file`."""
    summary = stage(config)
    console.print(show(summary))
    console.print(f"Results: {config.out / file}", soft_wrap=True)


def key_value_table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    return table


class RateColumn(ProgressColumn):
    """Units a second, or seconds a unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def progress(title: str, total: int, every_line: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that counts one unit done and shows a note.

    A bar on a terminal; in a log (a submitted job, CI) a line for every tenth of the work, or for all of it.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda note: bar.update(task, advance=1, note=note)
        return
    done = 0

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if every_line or done == total or done * 10 // total > (done - 1) * 10 // total:
            console.print(f"{title}: {done}/{total} {note}", soft_wrap=True)

    yield advance
