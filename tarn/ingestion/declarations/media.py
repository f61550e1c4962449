"""Pictures and sounds in a folder, catalogued where they lie."""

from typing import Literal

from pydantic import Field

from tarn.ingestion.declarations.base import Name, System, Table


class MediaTable(Table):
    path: str
    """File or glob pattern below the connection's folder: pictures/**/*. A file is one row: path,
    media_type by content, extension_matches, bytes, sha256, width, height, duration_seconds,
    tags, modified_at, is_gone."""
    primary_key: tuple[Literal["path"]] = ("path",)
    """A file is told by its path below the connection's folder."""
    write: Literal["replace", "merge"] = "replace"
    """replace: the table lists the files that are there now. merge: a file that is gone, or that
    can no longer be read, stays as it was last with is_gone true."""


class MediaSystem(System):
    kind: Literal["media"]
    connection: str
    """Folder, s3://bucket/folder, sftp://… or https://… Files are read there and left there."""
    tables: dict[Name, MediaTable] = Field(min_length=1)
