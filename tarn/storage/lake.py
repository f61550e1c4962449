"""The lake: one root with Delta tables at `<root>/<schema>/<table>`. No other rule for paths."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import obstore
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store

from tarn.errors import TarnError
from tarn.settings import Settings
from tarn.storage.policy import Policy

OWN_SCHEMA = "_tarn"
"""Folder of the lake that holds releases and view definitions instead of tables."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]*\.[A-Za-z0-9_][A-Za-z0-9_ -]*")
_S3_VARIABLES = ("AWS_", "aws_")


@dataclass(frozen=True)
class Lake:
    """A lake's root, and what is needed to reach it."""

    root: str
    """An absolute path or an `s3://bucket/prefix` address, without a slash at its end."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Storage options in delta-rs's spelling. Empty for a local lake."""
    policy: Policy = field(default_factory=Policy, repr=False)
    """How its tables are kept."""
    stamp: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What each commit tells of its maker, such as the project's git revision."""

    @classmethod
    def open(cls, settings: Settings) -> "Lake":
        """The lake of a project; a local root is made when it is missing."""
        policy = Policy.read(settings.project_dir)
        stamp = {"tarn.git_revision": settings.git_revision} if settings.git_revision else {}
        if "://" not in settings.lake:
            Path(settings.lake).mkdir(parents=True, exist_ok=True)
            return cls(settings.lake, {}, policy, stamp)
        options = {k: v for k, v in settings.variables.items() if k.startswith(_S3_VARIABLES)}
        return cls(settings.lake, options, policy, stamp)

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    @cached_property
    def objects(self) -> ObjectStore:
        """The files under the root, with conditional writes."""
        if self.is_local:
            return LocalStore(self.root, mkdir=True)
        return S3Store.from_url(self.root)

    def uri(self, name: str) -> str:
        """Where the table `schema.table` is kept, whether it exists or not."""
        if not _NAME.fullmatch(name):
            raise TarnError(
                f"{name!r} is not a table name",
                fix="use schema.table with letters, digits and underscores",
            )
        return f"{self.root}/{name.replace('.', '/')}"

    def table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """The table `schema.table`, at its latest version unless told otherwise; None if absent."""
        try:
            return DeltaTable(self.uri(name), version=version, storage_options=dict(self.options))
        except TableNotFoundError:
            return None

    def names(self) -> list[str]:
        """`schema.table` of every table in the lake, sorted."""
        return sorted(
            f"{schema}.{table}"
            for schema in self._folders("")
            if schema != OWN_SCHEMA
            for table in self._folders(schema)
            if _NAME.fullmatch(f"{schema}.{table}") and self._has_log(f"{schema}/{table}")
        )

    def _folders(self, prefix: str) -> list[str]:
        listed = obstore.list_with_delimiter(self.objects, prefix or None)["common_prefixes"]
        return [str(path).rstrip("/").rpartition("/")[2] for path in listed]

    def _has_log(self, path: str) -> bool:
        """Whether a folder holds at least one commit; a table half created does not."""
        return any(chunk for chunk in self.objects.list(f"{path}/_delta_log", chunk_size=1))
