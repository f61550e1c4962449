"""The lake: one root with Delta tables at `<root>/<schema>/<table>`. No other rule for paths."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore

from tarn.errors import TarnError
from tarn.settings import Settings
from tarn.storage import soundness
from tarn.storage.policy import Policy
from tarn.storage.s3 import S3, unreachable

if TYPE_CHECKING:
    from obstore import ObjectMeta

OWN_SCHEMA = "_tarn"
"""Folder of the lake that holds releases and view definitions instead of tables."""
HISTORY = "tarn."
"""How names of tables begin in which a lake keeps what was done to it: loads, drift, alerts."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_ -]{0,127}"
_NAME = re.compile(rf"(?!_){_PART}\.{_PART}")
_MISREAD = re.compile(r"[%#?\[\]\\^|`{}<>]")
_S3_VARIABLES = ("AWS_", "aws_")


@dataclass(frozen=True)
class Lake:
    """A lake's root, and what is needed to reach it."""

    root: str
    """An absolute path or an `s3://bucket/prefix` address, without a slash at its end."""
    service: S3 | None = None
    """How S3 is reached; None for a local lake."""
    policy: Policy = field(default_factory=Policy, repr=False)
    """How its tables are kept."""
    work_dir: Path = Path(".tarn")
    """On this machine's disk, for what a distant lake cannot hold and can be made again."""
    is_rehearsal: bool = False
    """Writes are checked and counted, and change nothing."""
    project: Settings | None = field(default=None, repr=False)
    """The project that writes to it, which commits tell the git revision of."""

    @classmethod
    def open(cls, settings: Settings) -> "Lake":
        """The lake of a project; a local root is made when it is missing.

        Raises TarnError when S3 cannot be reached or refuses.
        """
        root = settings.lake
        policy = Policy.read(settings.project_dir)
        if "://" not in root:
            if strange := _MISREAD.search(root):
                raise TarnError(
                    f"{strange[0]!r} in the folder's name, which Delta's libraries misread",
                    root,
                    "name the folder without it",
                )
            Path(root).mkdir(parents=True, exist_ok=True)
            return cls(root, None, policy, settings.work_dir, project=settings)
        if not re.fullmatch(r"s3://[^/]+(/[^/]+)*", root) or ".." in root.split("/"):
            raise TarnError(
                "a lake is a folder of this machine or s3://bucket/folder", root, "mend TARN_LAKE"
            )
        given = {k: v for k, v in settings.variables.items() if k.startswith(_S3_VARIABLES)}
        service = S3(given)
        service.keys()
        lake = cls(root, service, policy, settings.work_dir, project=settings)
        with lake.told():
            obstore.list_with_delimiter(lake.objects, OWN_SCHEMA)
        return lake

    @property
    def stamp(self) -> dict[str, str]:
        """What each commit tells of its maker. Asks git, so only a write should ask for it."""
        revision = self.project.git_revision if self.project else ""
        return {"tarn.git_revision": revision} if revision else {}

    @property
    def is_local(self) -> bool:
        return self.service is None

    @property
    def options(self) -> dict[str, str]:
        """Storage options in delta-rs's spelling, with credentials as they are now."""
        return self.service.delta_options() if self.service else {}

    @cached_property
    def objects(self) -> ObjectStore:
        """The files under the root, with conditional writes."""
        return self.service.store(self.root) if self.service else LocalStore(self.root, mkdir=True)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Failures of S3 inside are told as a TarnError, without the request."""
        try:
            yield
        except (BaseError, DeltaError, OSError) as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from None

    def _told(self, error: BaseException) -> TarnError | None:
        if self.service is None or not isinstance(error, Exception):
            return None
        return unreachable(error, self.root, self.service.endpoint)

    def uri(self, name: str) -> str:
        """Where the table `schema.table` is kept, whether it exists or not."""
        if not _NAME.fullmatch(name):
            raise TarnError(
                f"{name[:200]!r} is not a table name",
                fix="use schema.table with letters, digits and underscores",
            )
        return f"{self.root}/{name.replace('.', '/')}"

    def table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """The table `schema.table`, at its latest version unless told otherwise; None if absent.

        Raises TarnError when there is something that is not a sound Delta table of this lake.
        """
        uri = self.uri(name)
        try:
            table = DeltaTable(uri, version=version, storage_options=self.options)
        except TableNotFoundError:
            if other := soundness.foreign(self.objects, name):
                raise TarnError(
                    f"the folder holds {other}, not a Delta table",
                    name,
                    "nothing was changed; move it out of the lake, or choose another name",
                ) from None
            return None
        except BaseException as error:
            # A panic of Rust code is no Exception.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise self._told(error) or soundness.refusal(name, error) from error
        soundness.check(self.root if self.is_local else None, name, table, self.objects)
        return table

    def names(self) -> list[str]:
        """`schema.table` of every table in the lake, sorted."""
        return [name for name in self.folders() if self._has_log(name.replace(".", "/"))]

    def folders(self) -> list[str]:
        """`schema.table` of each folder where a table is, or was about to be; sorted."""
        found = (
            f"{schema}.{table}"
            for schema in self._folders("")
            if schema != OWN_SCHEMA
            for table in self._folders(schema)
        )
        return sorted(name for name in found if _NAME.fullmatch(name))

    def files(self, folder: str) -> "Iterator[ObjectMeta]":
        """All files below a folder of the lake, as obstore lists them; none if it is missing."""
        return (entry for page in self.objects.list(folder) for entry in page)

    def _folders(self, prefix: str) -> list[str]:
        if self.is_local:
            if not Path(self.root, prefix).is_dir():
                return []
            # obstore gives up at a link that leads nowhere.
            with os.scandir(Path(self.root, prefix)) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        listed = obstore.list_with_delimiter(self.objects, prefix or None)["common_prefixes"]
        return [str(path).rstrip("/").rpartition("/")[2] for path in listed]

    def _has_log(self, path: str) -> bool:
        """Whether a folder holds at least one commit; a table half created does not."""
        if self.is_local:
            log = Path(self.root, path, "_delta_log")
            return log.is_dir() and any(soundness.is_log_file(name) for name in os.listdir(log))
        paths = (entry["path"] for entry in self.files(f"{path}/_delta_log"))
        return any(soundness.is_log_file(path.rpartition("/")[2]) for path in paths)
