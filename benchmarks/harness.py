"""Time contenders side by side: in turns, each in a process of its own, medians and ratios."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUN = Path(__file__).parent / ".run"
"""Data that benchmarks make and use again; disposable, ignored by git."""
CONSOLE = Console(width=110)
TARN = [sys.executable, "-c", "from tarn.cli import main; main()"]


@dataclass
class Contender:
    """One way to do the work."""

    name: str
    command: Sequence[str]
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], object] = lambda: None
    """Put things back as they were; not timed."""
    inner: Callable[[], float] | None = None
    """Seconds of the part that is compared, as the process itself measured them."""
    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    """Greatest resident memory of each run, MB."""

    def run(self) -> None:
        """Run it once."""
        self.before()
        environment = {**os.environ, **self.environment}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        started = time.perf_counter()
        process = subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{self.name} failed:\n{output.decode()[-3000:]}")
        elapsed = time.perf_counter() - started
        self.seconds.append(self.inner() if self.inner else elapsed)
        self.peaks.append(usage.ru_maxrss / 1024)


def compare(title: str, contenders: Sequence[Contender], rounds: int = 5) -> None:
    """Run all in turns, and print each one's median and its ratio to the first."""
    for _ in range(rounds):
        for contender in contenders:
            contender.run()
    base = statistics.median(contenders[0].seconds)
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("", "median s", "from", "to", "peak MB", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in contenders:
        median = statistics.median(one.seconds)
        table.add_row(
            one.name,
            f"{median:.2f}",
            f"{min(one.seconds):.2f}",
            f"{max(one.seconds):.2f}",
            f"{statistics.median(one.peaks):,.0f}",
            f"{median / base:.2f}",
        )
    CONSOLE.print(table)
    CONSOLE.print()


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with the interpreter that runs this."""
    return [sys.executable, "-m", module, *arguments]


def beside(program: str) -> str:
    """A program installed with the interpreter that runs this."""
    return str(Path(sys.executable).with_name(program))


def project(name: str, system: str, declared: str) -> Path:
    """A new project of one system; declared: its kind, connection and tables."""
    folder = RUN / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "ingestion").mkdir(parents=True)
    (folder / "dbt_project.yml").touch()
    (folder / f"ingestion/{system}.yml").write_text(
        f"system: {system}\ndescription: For a benchmark.\n"
        f"owner: {{name: Us, email: us@example.com}}\n{declared}\n"
    )
    return folder


def in_project(folder: Path) -> dict[str, str]:
    """The environment of Tarn's commands there."""
    root = str(Path(__file__).parents[1])
    return {"PYTHONPATH": root, "TARN_LAKE": str(folder / "lake"), "TARN_WORK": str(folder / ".w")}
