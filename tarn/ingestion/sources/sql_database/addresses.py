"""Database addresses, and what went wrong behind them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tarn.errors import TarnError
from tarn.ingestion.masking import masked

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
"""The drivers that are installed, for addresses that name none, or the older one."""
_WAIT_SECONDS = "15"
_FIX = "check that the database runs and that address, name and password are right"


def url_of(address: str, project: Path, where: str) -> sa.URL:
    """The address; raises TarnError for what is none, and for an SQLite file that is not there."""
    try:
        url = sa.make_url(address)
    except sa.exc.ArgumentError as error:
        fix = "write postgresql://user:password@host/database or sqlite:///path"
        raise TarnError("connection is no database address", where, fix) from error
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername == "postgresql+psycopg" and "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": _WAIT_SECONDS})
    if url.get_backend_name() != "sqlite" or not url.database:
        return url
    path = project / url.database
    if not path.is_file():
        raise TarnError(
            f"no database file {url.database}", where, "check the path; is it made yet?"
        )
    return url.set(database=str(path))


def secrets_of(url: sa.URL) -> frozenset[str]:
    """Passwords, wherever an address may have them."""
    given = [url.password, *url.normalized_query.get("password", ())]
    return frozenset(each for each in given if each)


def engine_of(url: sa.URL, where: str) -> sa.Engine:
    """Connects to nothing yet; raises TarnError where the driver is missing."""
    try:
        return sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, ImportError) as error:
        fix = "install the driver that SQLAlchemy asks for, or mend the address"
        raise TarnError(f"cannot use this address: {error}", where, fix) from error


@contextmanager
def opened(engine: sa.Engine, where: str) -> Iterator[sa.Connection]:
    """A connection; raises TarnError that tells why there is none."""
    try:
        connection = engine.connect()
    except sa.exc.SQLAlchemyError as error:
        raise TarnError(f"cannot open {shown(engine.url)}: {reason(error)}", where, _FIX) from error
    with connection:
        yield connection


def shown(url: sa.URL) -> str:
    """The address without what is only for the driver."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return masked(plain.render_as_string(hide_password=True))


def reason(error: BaseException) -> str:
    """The database's own words, on one line."""
    original: Any = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    arguments: Sequence[Any] = getattr(original, "args", ())
    if len(arguments) > 1 and isinstance(arguments[0], int):
        original = arguments[1]  # PyMySQL's number, then its message.
    text = re.sub(r"^.*?\b(ERROR|FATAL):\s+", "", str(original).strip(), flags=re.DOTALL)
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_ASIDE)]
    return masked(" ".join(told[:2]) or type(error).__name__)


_ASIDE = ("LINE ", "^", "Query was:", "(Background", "[SQL", "Multiple connection attempts")
