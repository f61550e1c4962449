"""What an alert says of itself under `config.meta.run`."""

import re
from datetime import timedelta
from string import Formatter
from typing import Annotated, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import duckdb
from pydantic import AfterValidator, Field, model_validator

from tarn.serving.formats import check_format
from tarn.strict_yaml import Spec, Time, duration, nearest

START, END = "window_start", "window_end"
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
PLACES = ("value", "usual", "threshold", "window", "title")
"""What a message may have in braces."""
_VARIABLE = re.compile(r"\$\{(\w+)")
_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$"


def _positive(text: str) -> str:
    if not duration(text):
        raise ValueError("must be longer than nothing")
    return text


Positive: TypeAlias = Annotated[Time, AfterValidator(_positive)]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone such as Europe/Berlin") from None
    return name


def _with_variable(text: str) -> str:
    if "${" not in text:
        raise ValueError("it is a secret, so write ${NAME} and set the variable")
    return text


Secret: TypeAlias = Annotated[str, AfterValidator(_with_variable)]


class Deviation(Spec):
    """A bound that is the alert's own pattern: the same window of the same weekday and hour."""

    side: Literal["below", "above"]
    """On which side of the pattern a value is out of bounds."""
    by: Annotated[float, Field(gt=0)] = 4
    """How many usual deviations from the median: median absolute deviations scaled to a standard
    deviation, and never less than a twentieth of the median."""
    weeks: Annotated[int, Field(ge=2, le=52)] = 8
    """How many weeks back the pattern reaches."""
    at_least: Annotated[int, Field(ge=2)] = 4
    """With fewer weeks of history nothing is concluded. Weeks without a value, and those before
    the first value other than 0, are none."""

    @model_validator(mode="after")
    def _can_be_met(self) -> "Deviation":
        if self.at_least > self.weeks:
            raise ValueError("at_least is more than weeks")
        return self


class BusinessHours(Spec):
    """When the business is open; outside nothing is concluded, and what is open waits."""

    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS
    """On which days it opens."""
    opens: Annotated[str, Field(alias="from", pattern=_CLOCK)]
    """As 08:00."""
    closes: Annotated[str, Field(alias="to", pattern=_CLOCK)]
    """As 22:00, or 24:00. Not later than from: on the day after."""
    timezone: Annotated[str, AfterValidator(_zone)]


class Heartbeat(Spec):
    """What tells a quiet business from a broken pipe."""

    source: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*$")]
    """<system>.<table> as loaded: one in which something always happens."""
    silent_after: Positive
    """There is no data when nothing has been committed for so long."""
    event_time: str | None = None
    """Column that says when it happened."""
    late_after: Positive | None = None
    """Data is late when rows come, but the newest event was older than this when they did."""

    @model_validator(mode="after")
    def _late_by_a_column(self) -> "Heartbeat":
        if (self.event_time is None) != (self.late_after is None):
            raise ValueError("event_time and late_after belong together")
        return self


class Webhook(Spec):
    """A channel that takes JSON as Slack and its like do."""

    kind: Literal["webhook"]
    url: Secret
    """By a variable, as ${SLACK_WEBHOOK}. With ${SLACK_WEBHOOK:-} it need not be set."""


class Email(Spec):
    kind: Literal["email"]
    to: Annotated[tuple[str, ...], Field(min_length=1)]
    smtp: Secret = "${SMTP_URL}"
    """smtp://user:password@host:587 (STARTTLS where the server has it, and always with a password)
    or smtps://…:465."""
    sender: str = "tarn@localhost"


Channel: TypeAlias = Annotated[Webhook | Email, Field(discriminator="kind")]


class Alert(Spec):
    """Tells people when a number is out of bounds, or when nobody can know."""

    kind: Literal["alert"]
    title: str
    severity: Literal["info", "warning", "critical"] = "warning"
    sql: str | None = None
    """Gives one value for the time from $window_start until before $window_end, both UTC."""
    metric: str | None = None
    """Of the project, over the whole days, hours or minutes of the window that are complete:
    whichever divides the window."""
    window: Positive
    every: Positive = "1m"
    """How often it is evaluated."""
    floor: float | None = None
    """The least that is well."""
    ceiling: float | None = None
    """The most that is well."""
    deviation: Deviation | None = None
    business_hours: BusinessHours | None = None
    heartbeat: Heartbeat | None = None
    message: str = "{title}: {value} in {window}; {threshold} expected"
    """With {value}, {usual}, {threshold}, {window} and {title} in it."""
    format: Annotated[str, AfterValidator(check_format)] | None = None
    """Of the numbers in messages, as $,.0f or .1%."""
    repeat_after: Positive = "4h"
    """How long it is open until it is told again."""
    resolve_after: Time = "5m"
    """How long all must be well until it is resolved."""
    notify: tuple[Channel, ...] = ()
    """Whom it is sent to, beside the table tarn.alerts, which every change is a row of."""

    @model_validator(mode="after")
    def _measures(self) -> "Alert":
        if (self.sql is None) == (self.metric is None):
            raise ValueError("give either sql or metric")
        if self.floor is None and self.ceiling is None and self.deviation is None:
            raise ValueError("give a floor, a ceiling or a deviation")
        if self.sql is not None:
            _check_bounds(self.sql)
        if self.metric is not None and duration(self.window) % timedelta(minutes=1):
            raise ValueError("the window of a metric is whole minutes, hours or days")
        return self

    @model_validator(mode="after")
    def _message_has_known_places(self) -> "Alert":
        for _, place, _, _ in Formatter().parse(self.message):
            if place is not None and place not in PLACES:
                raise ValueError(f"message: unknown {{{place}}}{nearest(place, PLACES)}")
        return self

    @model_validator(mode="after")
    def _channels_differ(self) -> "Alert":
        if len(set(map(label, self.notify))) < len(self.notify):
            raise ValueError("notify names a channel twice")
        return self


def label(channel: Channel) -> str:
    """What a channel is called in messages: nothing of its address."""
    if isinstance(channel, Webhook):
        return f"webhook {', '.join(_VARIABLE.findall(channel.url))}"
    return f"email to {', '.join(channel.to)}"


def _check_bounds(sql: str) -> None:
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise ValueError(f"sql: {str(error).strip()}") from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise ValueError("sql must be one select")
    if missing := {START, END} - set(statements[0].named_parameters):
        raise ValueError(f"sql does not use ${min(missing)}, so it measures no window")
