"""A database that is read by following its log instead of by queries (`mode: cdc`)."""

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.sql_database import SqlSystem
from tarn.ingestion.sources import Source
from tarn.ingestion.sources.sql_database import SqlDatabase
from tarn.settings import Settings


def database(declared: Declared, home: Settings) -> Source:
    """The database, read in the way that its declaration says."""
    assert isinstance(declared.system, SqlSystem)
    if declared.system.mode == "query":
        return SqlDatabase(declared, home)
    # Brings PostgreSQL's driver, which no other database needs.
    from tarn.ingestion.sources.cdc.follow import FollowedDatabase

    return FollowedDatabase(declared, home)
