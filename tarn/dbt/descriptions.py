"""What a Delta table and its columns say of themselves, changed after the table was made.

A write carries the descriptions it is given, so this commits only where they changed since.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deltalake import CommitProperties, DeltaTable

from tarn.storage.tables import comments


class Turns:
    """Many threads may write at once, or one may alter a table alone.

    delta-rs alters a table with Python's lock held; a thread that streams Python's batches into
    a write needs that lock to go on, so the two together could wait for each other for ever.
    """

    def __init__(self) -> None:
        self._writers = 0
        self._changed = threading.Condition()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Among others that write."""
        with self._changed:
            self._writers += 1
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody writes."""
        with self._changed:
            self._changed.wait_for(lambda: self._writers == 0)
            yield


def describe(
    table: DeltaTable,
    description: str | None,
    columns: Mapping[str, str],
    properties: Mapping[str, str],
) -> bool:
    """Give the table and its columns these descriptions; whether that took a commit.

    Without a description the table keeps the one it has, as do columns without a comment.
    """
    marks = CommitProperties(custom_metadata=dict(properties))
    before, kept = table.version(), dict(comments(table))
    if description and table.metadata().description != description:
        table.alter.set_table_description(description, commit_properties=marks)
    for field in table.schema().fields:
        said = columns.get(field.name)
        if said and said != kept.get(field.name):
            table.alter.set_column_metadata(field.name, {"comment": said}, commit_properties=marks)
    return bool(table.version() > before)
