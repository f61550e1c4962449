"""Schedules as text for other schedulers. Each only wakes `tarn schedule --once`, which knows what
is due: so it does not matter that they know no time zones, or come late."""

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml

from tarn.ingestion.declarations import Declared
from tarn.ingestion.timetable import Timetable, timetables

_EVERY_FIVE_MINUTES = "*/5 * * * *"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}")


def crontab_text(systems: Mapping[str, Timetable], project: Path, tarn: str) -> str:
    """Lines for a user's crontab: one a schedule. Where cron does not know CRON_TZ, or its
    machine is elsewhere, what is due runs later that day rather than never."""
    command = f"cd {shlex.quote(str(project))} && {shlex.quote(tarn)} schedule --once"
    # In a crontab a percent sign ends the command.
    command = command.replace("%", r"\%")
    lines = [
        "# Written by: tarn schedule crontab. To add them to yours:",
        "#   (crontab -l; tarn schedule crontab) | crontab -",
    ]
    for timetable, names in _by_timetable(systems).items():
        lines += [f"# {', '.join(names)}", f"CRON_TZ={timetable.zone}"]
        lines.append(f"{timetable.cron} {command}")
    return "\n".join(lines) + "\n"


def github_text(systems: Sequence[Declared]) -> str:
    """A workflow. GitHub knows only UTC: a schedule in another zone wakes it at that minute of
    every hour."""
    found = timetables(systems)
    crons = sorted({_in_utc(timetable) for timetable in found.values()})
    names = sorted({name for each in systems for name in _secrets(each)})
    steps: list[dict[str, object]] = [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.11", "cache": "pip"}},
        {"run": "pip install --require-hashes -r requirements.lock"},
        {"run": "pip install --no-deps ."},
        {"run": "tarn schedule --once", "env": _environment(names)},
    ]
    workflow = {
        "name": "load",
        "on": {"schedule": [{"cron": cron} for cron in crons], "workflow_dispatch": {}},
        "concurrency": {"group": "tarn-schedule", "cancel-in-progress": False},
        "jobs": {"load": {"runs-on": "ubuntu-latest", "steps": steps}},
    }
    text = yaml.safe_dump(workflow, sort_keys=False, width=100)
    return (
        "# Written by: tarn schedule github > .github/workflows/load.yml\n"
        "# The lake must outlive the runner: set the variable TARN_LAKE to s3://bucket/folder.\n"
        # YAML 1.1 takes `on` for true, so it was quoted; GitHub does not care.
        + text.replace("'on':", "on:")
    )


def _by_timetable(systems: Mapping[str, Timetable]) -> dict[Timetable, list[str]]:
    found: dict[Timetable, list[str]] = {}
    for name, timetable in systems.items():
        found.setdefault(timetable, []).append(name)
    return dict(sorted(found.items(), key=lambda item: item[0].zone))


def _in_utc(timetable: Timetable) -> str:
    """Times in UTC that are often enough."""
    minute, hour, day, month, weekday = timetable.cron.split()
    # What GitHub does not know as Sunday.
    plain = f"{minute} {hour} {day} {month} {weekday.replace('7', '0')}"
    shifts = {_shift(timetable.zone, month_number) for month_number in range(1, 13)}
    if shifts == {timedelta(0)}:
        return plain if "-7" not in weekday else f"{minute} {hour} {day} {month} *"
    if any(shift % timedelta(hours=1) for shift in shifts):
        return _EVERY_FIVE_MINUTES
    return f"{minute} * * * *"


def _shift(zone: str, month: int) -> timedelta:
    offset = datetime.now(UTC).replace(month=month, day=1).astimezone(ZoneInfo(zone)).utcoffset()
    return offset or timedelta(0)


def _secrets(declared: Declared) -> list[str]:
    """Variables that the declaration cannot do without."""
    text = yaml.safe_dump(declared.file.data)
    return [match[1] for match in _VARIABLE.finditer(text) if match[2] is None]


def _environment(names: Sequence[str]) -> dict[str, str]:
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return {
        "TARN_LAKE": "${{ vars.TARN_LAKE }}",
        "AWS_REGION": "${{ vars.AWS_REGION }}",
        **{name: f"${{{{ secrets.{name} }}}}" for name in (*keys, *names)},
    }
