"""Progress of long jobs: a live display on a terminal, a line at each start and end elsewhere."""

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import Progress as Display
from rich.progress import ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as Row
from rich.table import Column
from rich.text import Text


class Task(Protocol):
    """One thing being done, counted in rows."""

    def advance(self, rows: int) -> None:
        """So many rows more."""

    def end(self, outcome: str) -> None:
        """It is over; `outcome` says how, in a few words."""


class Progress(Protocol):
    """A place where tasks show how far they are. Use it in a `with`; tasks may be in threads."""

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def task(self, name: str) -> Task:
        """A task that begins now."""


def progress(console: Console) -> Progress:
    """What suits the console."""
    return _Live(console) if console.is_terminal else _Lines(console)


_ONE_LINE = Column(ratio=1, no_wrap=True, overflow="ellipsis")
"""Outcomes are told in full when the work is done."""


class _Live:
    def __init__(self, console: Console) -> None:
        self.display = Display(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=30)),
            _Rows(table_column=Column(no_wrap=True, min_width=31)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=8)),
            TextColumn("{task.fields[outcome]}", markup=False, table_column=_ONE_LINE),
            console=console,
            expand=True,
        )

    def __enter__(self) -> "_Live":
        self.display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.stop()

    def task(self, name: str) -> Task:
        return _LiveTask(self.display, self.display.add_task(name, total=None, outcome=""))


class _LiveTask:
    def __init__(self, display: Display, identifier: TaskID) -> None:
        self.display, self.identifier = display, identifier

    def advance(self, rows: int) -> None:
        self.display.advance(self.identifier, rows)

    def end(self, outcome: str) -> None:
        row = next(task for task in self.display.tasks if task.id == self.identifier)
        self.display.update(
            self.identifier, total=row.completed, outcome=outcome.partition("\n")[0]
        )
        self.display.stop_task(self.identifier)


class _Rows(ProgressColumn):
    """Rows so far, and how many a second."""

    def render(self, task: Row) -> Text:
        seconds = task.finished_time or task.elapsed or 0
        rate = f"{task.completed / seconds:>11,.0f}/s" if seconds > 0.05 else " " * 13
        return Text(f"{int(task.completed):>12,} rows {rate}", style="cyan")


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def task(self, name: str) -> Task:
        self.console.print(f"{name}: started", highlight=False, soft_wrap=True)
        return _LineTask(self.console, name)


class _LineTask:
    def __init__(self, console: Console, name: str) -> None:
        self.console, self.name = console, name

    def advance(self, rows: int) -> None:
        pass

    def end(self, outcome: str) -> None:
        self.console.print(f"{self.name}: {outcome}", highlight=False, soft_wrap=True, markup=False)
