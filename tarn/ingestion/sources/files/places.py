"""Where files are: a folder, S3, SFTP, a web server. Each lists what a pattern names, and fetches.

What is fetched is a copy, so what is read cannot change meanwhile. A folder's files are read where
they are.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from glob import escape, glob
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit

from tarn.errors import TarnError
from tarn.ingestion.masking import masked
from tarn.settings import Settings

_SECONDS = 60
_CHUNK = 1 << 20
NEVER = datetime(1970, 1, 1)
"""Time of files whose place does not tell when they changed."""


@dataclass(frozen=True)
class Found:
    """A file as it lies there now."""

    path: str
    """Below the connection's folder."""
    bytes: int
    modified_at: datetime
    """UTC without zone."""
    tag: str | None = None
    """What stands for its content, where its place gives that and no time."""


class Place(Protocol):
    """A folder somewhere."""

    is_local: bool = False
    is_atomic: bool = False
    """A file appears when it is whole."""

    def list(self, pattern: str) -> list[Found]:
        """The files that a pattern names."""

    def look(self, path: str) -> Found | None:
        """One file as it is now; None if it is gone."""

    def fetch(self, path: str, target: Path) -> Path:
        """Where the file can be read: `target`, unless it is local."""


def place(address: str, home: Settings, where: str) -> Place:
    """The folder at an address; raises TarnError if it is not there."""
    scheme = urlsplit(address).scheme if "://" in address else "file"
    kinds: dict[str, Callable[[], Place]] = {
        "file": lambda: Folder(home.project_dir / address.removeprefix("file://"), where),
        "s3": lambda: Bucket(address, home, where),
        "sftp": lambda: Sftp(address, where),
        "http": lambda: Web(address, where),
        "https": lambda: Web(address, where),
    }
    if scheme not in kinds:
        raise TarnError(
            f"no files can be read from {scheme}://", where, f"known: {', '.join(sorted(kinds))}"
        )
    return kinds[scheme]()


class Folder(Place):
    """On this machine's disk."""

    is_local = True

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder.resolve()
        if not self.folder.is_dir():
            raise TarnError(f"no folder {self.folder}", where, "check the path")

    def list(self, pattern: str) -> list[Found]:
        names = glob(pattern, root_dir=self.folder, recursive=True, include_hidden=True)
        if not names:
            # A name may hold what means something in a pattern.
            names = glob(escape(pattern), root_dir=self.folder)
        found = (self.look(name) for name in sorted(set(names)))
        return [each for each in found if each]

    def look(self, path: str) -> Found | None:
        try:
            told = (self.folder / path).stat()
        except FileNotFoundError:
            return None
        if not os.path.isfile(self.folder / path):
            return None
        changed = datetime.fromtimestamp(told.st_mtime, UTC).replace(tzinfo=None)
        return Found(path, told.st_size, changed)

    def fetch(self, path: str, target: Path) -> Path:
        return self.folder / path


class Bucket(Place):
    """A prefix on an S3 service, with the credentials by which the lake's would be found."""

    is_atomic = True

    def __init__(self, address: str, home: Settings, where: str) -> None:
        from tarn.storage.s3 import S3

        self.address, self.where, self.service = address, where, S3(home.variables)
        self.store = self.service.store(address.rstrip("/"))

    def list(self, pattern: str) -> list[Found]:
        import obstore

        matches, prefix = _matcher(pattern), _fixed_folder(pattern)
        with self._told():
            pages = obstore.list(self.store, prefix or None)
            items = [item for page in pages for item in page]
        return [_object(item) for item in items if matches(item["path"])]

    def look(self, path: str) -> Found | None:
        import obstore

        try:
            with self._told():
                return _object(obstore.head(self.store, path))
        except FileNotFoundError:
            return None

    def fetch(self, path: str, target: Path) -> Path:
        import obstore

        with self._told(), target.open("wb") as written:
            for chunk in obstore.get(self.store, path).stream(_CHUNK):
                written.write(chunk)
        return target

    @contextmanager
    def _told(self) -> Iterator[None]:
        from tarn.storage.s3 import unreachable

        try:
            yield
        except Exception as error:
            told = unreachable(error, self.address, self.service.endpoint)
            is_missing = isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)
            if told is None or is_missing:
                raise
            fix = "create it, or mend the connection" if "no bucket" in told.what else told.fix
            raise TarnError(told.what, self.where, fix) from error


class Sftp(Place):
    """A folder of an SSH server whose key is among the user's known hosts."""

    def __init__(self, address: str, where: str) -> None:
        self.parts, self.where = urlsplit(address), where
        self.folder = unquote(self.parts.path).rstrip("/") or "/"
        with self._told():
            if not self.files.isdir(self.folder):
                raise TarnError(f"no folder {self.folder} on {self.parts.hostname}", where)

    @cached_property
    def files(self) -> Any:
        from sshfs import SSHFileSystem  # type: ignore[import-untyped]

        options = {
            "port": self.parts.port,
            "username": unquote(self.parts.username or "") or None,
            "password": unquote(self.parts.password or "") or None,
        }
        given = {key: value for key, value in options.items() if value is not None}
        return SSHFileSystem(
            self.parts.hostname,
            # Without it, sshfs trusts every server.
            known_hosts=_known_hosts(),
            connect_timeout=_SECONDS,
            skip_instance_cache=True,
            **given,
        )

    def list(self, pattern: str) -> list[Found]:
        matches = _matcher(pattern)
        start = f"{self.folder}/{_fixed_folder(pattern)}".rstrip("/")
        depth = None if "**" in pattern else pattern.count("/") + 1
        with self._told():
            items = self.files.find(start, maxdepth=depth, detail=True)
        found = ((self._below(path), told) for path, told in items.items())
        return [self._found(path, told) for path, told in found if matches(path)]

    def look(self, path: str) -> Found | None:
        with self._told():
            try:
                return self._found(path, self.files.info(f"{self.folder}/{path}"))
            except FileNotFoundError:
                return None

    def fetch(self, path: str, target: Path) -> Path:
        with self._told():
            self.files.get_file(f"{self.folder}/{path}", str(target))
        return target

    def _below(self, path: str) -> str:
        return path.removeprefix(self.folder).lstrip("/")

    def _found(self, path: str, told: Any) -> Found:
        at = told.get("mtime")
        changed = at.astimezone(UTC).replace(tzinfo=None) if at else NEVER
        return Found(path, int(told["size"]), changed)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import asyncssh

        host = self.parts.hostname
        try:
            yield
        except asyncssh.HostKeyNotVerifiable as error:
            fix = f"add its key to ~/.ssh/known_hosts: ssh-keyscan {host}, and compare it"
            raise TarnError(f"the key of {host} is not known", self.where, fix) from error
        except (asyncssh.PermissionDenied, PermissionError) as error:
            what = f"{host} does not accept the user, password or key, or for this folder"
            raise TarnError(
                what, self.where, "mend the connection, or the folder's rights"
            ) from error
        except (asyncssh.Error, ConnectionError, TimeoutError) as error:
            what = f"{host} cannot be read: {masked(str(error), [self.parts.password or ''])}"
            raise TarnError(what, self.where, "check that it runs and the port") from error


def _known_hosts() -> bytes:
    """The user's and the machine's lists of servers and their keys."""
    lists = (Path.home() / ".ssh/known_hosts", Path("/etc/ssh/ssh_known_hosts"))
    return b"\n".join(each.read_bytes() for each in lists if each.is_file())


class Web(Place):
    """Files of a web server: those a page of links names, or a path without pattern."""

    is_atomic = True

    def __init__(self, address: str, where: str) -> None:
        from requests import Session  # type: ignore[import-untyped]

        self.address = address.rstrip("/") + "/"
        self.where, self.session = where, Session()

    def list(self, pattern: str) -> list[Found]:
        if not re.search(r"[*\[]", pattern):
            one = self.look(pattern)
            return [one] if one else []
        if "**" in pattern:
            fix = "name the folders, one pattern each"
            raise TarnError("a web server's folders cannot be searched with **", self.where, fix)
        folder = _fixed_folder(pattern)
        page = urljoin(self.address, quote(folder) + "/" if folder else "")
        matches = _matcher(pattern)
        with self._answer("GET", page) as answer:
            links = _links(answer.text)
        names = (self._below(urljoin(page, link)) for link in links)
        found = (self.look(name) for name in dict.fromkeys(names) if name and matches(name))
        return [each for each in found if each]

    def look(self, path: str) -> Found | None:
        for method in ("HEAD", "GET"):
            with self._answer(method, self._at(path), missing=True) as answer:
                told, code = answer.headers, answer.status_code
            if code not in (405, 501):
                break
        if code != 200:
            return None
        changed = _http_time(told.get("last-modified"))
        tag = told.get("etag") if changed == NEVER else None
        size = int(told.get("content-length") or -1)
        return Found(path, size, changed, tag)

    def fetch(self, path: str, target: Path) -> Path:
        with self._answer("GET", self._at(path)) as answer:
            with target.open("wb") as written:
                for chunk in answer.iter_content(_CHUNK):
                    written.write(chunk)
            expected = answer.headers.get("content-length")
        if expected and target.stat().st_size != int(expected):
            what = f"{target.stat().st_size} of {expected} bytes came of {path}"
            raise TarnError(what, self.where, "load again")
        return target

    def _at(self, path: str) -> str:
        name, mark, query = path.partition("?")
        return urljoin(self.address, quote(name) + mark + query)

    def _below(self, url: str) -> str:
        here, there = urlsplit(self.address), urlsplit(url)
        same = (here.hostname, here.port) == (there.hostname, there.port)
        inside = same and there.path.startswith(here.path)
        return unquote(there.path.removeprefix(here.path)) if inside else ""

    @contextmanager
    def _answer(self, method: str, url: str, missing: bool = False) -> Iterator[Any]:
        from requests.exceptions import (  # type: ignore[import-untyped]
            HTTPError,
            RequestException,
        )

        from tarn.ingestion.sources.http import http_failure

        try:
            with self.session.request(
                method,
                url,
                stream=method == "GET",
                timeout=_SECONDS,
                allow_redirects=True,
                headers={"accept-encoding": "identity"},
            ) as answer:
                if not (missing and answer.status_code in (404, 405, 501)):
                    answer.raise_for_status()
                yield answer
        except (HTTPError, RequestException) as error:
            told = http_failure(error, self.where)
            raise told or error from error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _links(page: str) -> list[str]:
    parser = _Links()
    parser.feed(page)
    return parser.found


def _http_time(text: str | None) -> datetime:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text or "").astimezone(UTC).replace(tzinfo=None)
    except ValueError:
        return NEVER


def _object(item: Any) -> Found:
    changed = item["last_modified"].astimezone(UTC).replace(tzinfo=None)
    return Found(item["path"], int(item["size"]), changed)


def _fixed_folder(pattern: str) -> str:
    """The folders that a pattern begins with, as far as they are names."""
    folders = pattern.split("/")[:-1]
    kept: list[str] = []
    for folder in folders:
        if re.search(r"[*?\[]", folder):
            break
        kept.append(folder)
    return "/".join(kept)


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path is one a glob pattern means; ** stands for any folders."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern):
        one = token.replace("[!", "[^") if token[0] == "[" and len(token) > 1 else re.escape(token)
        regex += parts.get(token, one)
    compiled = re.compile(regex)
    return lambda path: path == pattern or bool(compiled.fullmatch(path))
