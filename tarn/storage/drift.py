"""What ingestion noted in the lake of changes in sources, for those who read it."""

from tarn.storage.duck import select_from, session
from tarn.storage.lake import Lake
from tarn.storage.loads import DRIFT, LOADS


def blocked_tables(lake: Lake) -> frozenset[str]:
    """`raw_<system>.<table>` of the tables whose source has changed in a way that their contract
    does not let in, and that have not been loaded since."""
    drift, loads = lake.table(DRIFT), lake.table(LOADS)
    if drift is None or loads is None:
        return frozenset()
    sql = f"""
        select distinct 'raw_' || system || '.' || table_name
        from ({select_from(drift)}) as drift
        where verdict = 'blocked' and not exists (
            select 1 from ({select_from(loads)}) as loads
            where loads.system = drift.system and loads.table_name = drift.table_name
                and loads.status in ('loaded', 'unchanged') and loads.started_at > noticed_at
        )
    """
    with session(lake) as connection:
        return frozenset(name for (name,) in connection.execute(sql).fetchall())
