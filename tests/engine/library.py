"""A small project of its own upstream, for what takes many builds: rebuilding, killing, drills."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tarn
from tarn.storage.lake import Lake

PROJECT = Path(__file__).parents[1] / "library"
_BIN = Path(sys.executable).parent
_TABLES = """
create table books (book_id integer primary key, title text, shelf text, updated_at timestamp);
create table loans (
    loan_id integer primary key, book_id integer, branch text, lent_on date, returned_on date,
    updated_at timestamp
);
create table visits (visit_id integer primary key, visited_on date);
create table opening_hours (weekday integer primary key, opens text, closes text);
"""


@dataclass(frozen=True)
class Library:
    """The project in a folder of its own, with its lake in it."""

    folder: Path
    seed: int = 0

    @classmethod
    def founded(cls, folder: Path, seed: int = 0) -> "Library":
        """Put the project and its empty upstream into a folder."""
        shutil.copytree(PROJECT, folder)
        library = cls(folder, seed)
        with library.upstream() as database:
            database.executescript(_TABLES)
        return library

    @property
    def lake(self) -> Lake:
        return Lake(str(self.folder / "lake"))

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TARN_", "DBT_"))}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        macros = Path(tarn.__file__).parent / "dbt" / "macros"
        return {
            **kept,
            "PATH": f"{_BIN}{os.pathsep}{kept['PATH']}",
            "TARN_MACROS": str(macros),
            "NO_COLOR": "1",
            "DBT_USE_COLORS": "0",
        }

    def upstream(self) -> sqlite3.Connection:
        """The lending desk's database."""
        return sqlite3.connect(self.folder / "desk.db")

    def day(self, number: int, loans: int = 200) -> None:
        """A day at the desk: the same for the same seed and number."""
        chance = random.Random(self.seed * 1000 + number)
        now, today = f"2024-01-{number:02d} 12:00:00", f"2024-01-{number:02d}"
        lent = [
            (number * 10_000 + i, chance.randint(1, 40), chance.choice("NS"), today, None, now)
            for i in range(loans)
        ]
        books = [(chance.randint(1, 40), chance.choice("ABC")) for _ in range(10)]
        with self.upstream() as database:
            database.executemany(
                "insert or replace into books values (?, ?, ?, ?)",
                [(book, f"Book {book}", shelf, now) for book, shelf in books],
            )
            database.executemany("insert into loans values (?, ?, ?, ?, ?, ?)", lent)
            database.execute(
                "update loans set returned_on = ?, updated_at = ?"
                " where returned_on is null and loan_id % 7 = ?",
                (today, now, number % 7),
            )
            database.executemany(
                "insert into visits (visited_on) values (?)", [(today,)] * chance.randint(50, 99)
            )
            database.executemany(
                "insert or replace into opening_hours values (?, ?, ?)",
                [(weekday, "09:00", f"{chance.randint(16, 20)}:00") for weekday in range(7)],
            )

    def command(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the project."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def tarn(self, *arguments: str) -> str:
        """Run Tarn's command line, which must succeed, and give what it says."""
        done = self.command("tarn", *arguments)
        assert done.returncode == 0, f"tarn {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout
