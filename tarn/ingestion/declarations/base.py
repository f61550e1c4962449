"""What the declaration of every kind of system may say."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from tarn.ingestion.types import TYPE_PATTERN, named
from tarn.strict_yaml import Spec

_CRON = re.compile(r"[\d*/,-]+( [\d*/,-]+){2} [\w*/,-]+ [\w*/,-]+", re.ASCII)
"""What every cron understands: five fields, names of months and weekdays."""
_RESERVED = ("_load_id", "_loaded_at", "_source_file", "_place")

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _type_name(name: str) -> str:
    named(name)
    return name


ColumnType: TypeAlias = Annotated[
    str, AfterValidator(_type_name), WithJsonSchema({"type": "string", "pattern": TYPE_PATTERN})
]


class Owner(Spec):
    name: str
    """Team or person who answers for the system."""
    email: str


class Contract(Spec):
    columns: Literal["evolve", "freeze", "discard"] = "evolve"
    """A column the table lacks is added (evolve), stops the load (freeze) or is left out
    (discard). Freeze also stops the load when a column of the table is no longer delivered. A
    column that seems to be renamed stops it always."""
    types: Literal["freeze", "widen"] = "freeze"
    """A changed type stops the load (freeze), or the table takes it where no value can be lost
    (widen)."""
    required: tuple[str, ...] = ()
    """Columns that must be delivered; a row with a null in one goes to quarantine."""
    renamed: Mapping[str, str] = {}
    """Columns that the source has given another name: new name: name in the lake. The lake, and
    all else that is declared, keep the old one."""
    dropped: tuple[str, ...] = ()
    """Columns that the source no longer delivers, and no other column is in their place."""
    max_shrink: Annotated[str, Field(pattern=r"^\d{1,2}(\.\d+)?%$|^100%$")] = "50%"
    """A source that has lost more of a table's rows does not replace it."""

    def names_of(self, column: str) -> tuple[str, ...]:
        """The names under which a column of the lake may come."""
        return (column, *(new for new, old in self.renamed.items() if old == column))

    @model_validator(mode="after")
    def _one_name_each(self) -> "Contract":
        names = list(self.renamed.values())
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"renamed: two columns would become {', '.join(sorted(twice))}")
        return self


class Table(Spec):
    description: str | None = None
    """What one row is."""
    primary_key: tuple[str, ...] = ()
    """Columns that tell rows apart. Merge updates by them; append does not add a key twice. Of
    rows with the same key in one load the one with the highest cursor is kept, else the last."""
    cursor: str | None = None
    """Column that grows whenever a row is added or changed. A load asks the source for rows from
    the highest value in the lake on, where the source can be asked."""
    write: Literal["append", "merge", "replace"]
    """append adds rows; merge updates rows by primary_key and adds new ones; replace puts what
    the source holds now in place of everything."""
    partition_by: tuple[str, ...] = ()
    """Columns by whose values the table's files are kept apart."""
    columns: Mapping[str, ColumnType] = {}
    """Types of columns, for sources that deliver text. A row with another value goes to
    quarantine."""
    contract: Contract = Contract()
    rules: tuple[str, ...] = ()
    """Conditions in SQL (DuckDB's). A row for which one is false goes to quarantine."""
    allow_empty: bool = False
    """Let an empty source empty a table that is written by replace."""

    @model_validator(mode="after")
    def _write_fits(self) -> "Table":
        if self.write == "merge" and not self.primary_key:
            raise ValueError("write: merge needs a primary_key")
        if self.write == "replace" and self.cursor:
            raise ValueError("write: replace reads everything each time; remove the cursor")
        if self.allow_empty and self.write != "replace":
            raise ValueError("allow_empty is for write: replace only")
        return self

    @model_validator(mode="after")
    def _shrinks_what_is_replaced(self) -> "Table":
        if "max_shrink" in self.contract.model_fields_set and self.write != "replace":
            raise ValueError("max_shrink is for write: replace only")
        return self

    @model_validator(mode="after")
    def _no_column_is_ours(self) -> "Table":
        if taken := set(self.columns) & set(_RESERVED):
            raise ValueError(f"{', '.join(sorted(taken))}: Tarn's own column")
        return self


class System(Spec):
    system: Name
    """Name of the system, and of its file. Its tables land in `raw_<system>`."""
    description: str
    owner: Owner
    schedule: str | None = None
    """When the system is to be loaded, as a cron expression of five fields. Sunday is 0 or 7."""
    timezone: str = "UTC"
    """Time zone of the schedule: Europe/Berlin."""

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        if schedule is None:
            return None
        if not _CRON.fullmatch(schedule) or not croniter.is_valid(schedule):
            raise ValueError(f'{schedule!r} is not a cron expression such as "0 2 * * *"')
        try:
            croniter(schedule).get_next()
        except CroniterBadDateError as error:
            raise ValueError(f"{schedule!r} is a time that never comes") from error
        return schedule

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{timezone!r} is no time zone such as Europe/Berlin") from error
        return timezone
