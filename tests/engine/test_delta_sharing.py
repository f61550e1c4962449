"""Delta Sharing: every kind of profile, listings in pages, both response formats, bad servers."""

import json
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from jwcrypto.jwk import JWK

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.sources.delta_sharing import DeltaSharing
from tarn.settings import settings
from tests.engine.ingesting import Project, counts_of, project
from tests.engine.sharing_server import CLIENT_SECRET, KEY_FILE, PASSWORD, Sharing, profile
from tests.engine.test_golden import EXPECTED
from tests.engine.upstreams import TOKEN, serving

__all__ = ["project"]

HERE = Path(__file__).parent
PEOPLE = pa.table({"Id": [1, 2, 3], "area": ["n", "s", None]})
ADVANCED = ("deletion_vectors", "mapping_name", "plain")


class Shared:
    """A running server and a project that reads from it."""

    def __init__(self, project: Project, server: Sharing, address: str) -> None:
        self.project, self.server, self.address = project, server, address

    def open(self, kind: str = "bearer", **more: Any) -> None:
        told = {**profile(self.address, kind), **more}
        (self.project.path / "p.share").write_text(json.dumps(told))
        tables = "  people: {share: s, schema: c, write: replace}"
        self.project.declare("panel", "delta_sharing", "${P:-p.share}", tables)

    def load(self) -> tuple[int, int, int, int]:
        loaded = self.project.load("panel")["people"]
        assert loaded.error is None
        return counts_of(loaded)

    def failure(self) -> str:
        return str(self.project.load("panel")["people"].error)

    @property
    def source(self) -> DeltaSharing:
        declared = declare(self.project.path / "ingestion/panel.yml").resolved(settings())
        return DeltaSharing(declared, settings())


@pytest.fixture
def shared(project: Project) -> Iterator[Shared]:
    folder = project.path / "upstream"
    names = ["s.c.people", "s.c.stock", "s.d.stock", "t.c.prices", "u.c.more"]
    server = Sharing({name: folder / name for name in names})
    for name in names:
        write_deltalake(folder / name, PEOPLE, partition_by=["area"] if "people" in name else None)
    with serving(server.answer) as address:
        yield Shared(project, server, address)


@pytest.mark.parametrize(
    ("kind", "auth"),
    [("bearer", "bearer"), ("bearer_token", "bearer"), ("basic", "basic"), ("oauth", "oauth")],
)
def test_each_kind_of_profile_opens_a_share(shared: Shared, kind: str, auth: str) -> None:
    shared.server.auth = auth
    shared.open(kind)
    assert shared.load() == (3, 3, 0, 0)
    assert shared.load() == (0, 0, 0, 0)
    assert ("/token" in shared.server.asked) == (kind == "oauth")
    found = shared.project.rows("raw_panel.people", "id, area", "id")
    assert [tuple(row.values()) for row in found] == [(1, "n"), (2, "s"), (3, None)]


def test_a_private_key_opens_a_share(shared: Shared) -> None:
    key, other = (JWK.generate(kty="RSA", size=2048, kid="1") for _ in range(2))
    shared.server.key, file = key, shared.project.path / KEY_FILE
    shared.open("key")
    assert f"no file {KEY_FILE}" in shared.failure()
    file.write_bytes(other.export_to_pem(private_key=True, password=None))
    assert "answers 401" in shared.failure()
    file.write_bytes(key.export_to_pem(private_key=True, password=None))
    assert shared.load() == (3, 3, 0, 0)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("bearer", {"bearerToken": "not-the-token"}),
        ("basic", {"password": "not-the-password"}),
        ("oauth", {"clientSecret": "not-the-secret"}),
    ],
)
def test_a_wrong_secret_is_told_and_not_shown(
    shared: Shared, kind: str, wrong: dict[str, str]
) -> None:
    shared.server.auth = "basic" if kind == "basic" else kind
    shared.open(kind, **wrong)
    told = shared.failure()
    assert "answers 401" in told
    assert not [secret for secret in (*wrong.values(), TOKEN) if secret in told]


def test_an_expired_profile_is_told_before_anything_is_asked(shared: Shared) -> None:
    shared.open(expirationTime="2021-11-12T00:12:29.0Z")
    assert "the profile expired at 2021-11-12" in shared.failure()
    assert shared.server.asked == []
    shared.open("bearer_token", expirationTime="2999-01-01T00:00:00.000Z")
    assert shared.load() == (3, 3, 0, 0)


def test_what_is_no_profile_is_told(shared: Shared) -> None:
    shared.open()
    file = shared.project.path / "p.share"
    for text, told in (
        ("{", "no Delta Sharing profile"),
        ("[]", "no Delta Sharing profile"),
        ('{"shareCredentialsVersion": 1, "endpoint": "http://x"}', "'bearerToken' is missing"),
        ('{"shareCredentialsVersion": 9, "endpoint": "http://x"}', "too new"),
        ('{"shareCredentialsVersion": 2, "endpoint": "http://x", "type": "magic"}', "magic"),
    ):
        file.write_text(text)
        assert told in shared.failure()
    file.unlink()
    assert "no profile file" in shared.failure()


def test_all_pages_of_all_shares_are_offered(shared: Shared) -> None:
    shared.open()
    offered = {each.name: each for each in shared.source.offered()}
    assert sorted(offered) == ["more", "people", "prices", "s_c_stock", "s_d_stock"]
    spec = {"share": "s", "schema": "d", "table": "stock", "write": "replace"}
    assert offered["s_d_stock"].spec == spec
    assert offered["people"].columns == {"id": "bigint", "area": "text"}
    assert shared.source.check() == [
        f"{shared.address}: 5 tables in s, t, u",
        "people: version 0, 2 columns, 3 files as Parquet",
    ]


def test_a_table_that_is_not_shared_is_told_with_the_nearest(shared: Shared) -> None:
    shared.open()
    shared.project.declare(
        "panel", "delta_sharing", "p.share", "  people: {share: s, schema: c, table: poeple,"
        " write: replace}",
    )  # fmt: skip
    assert "answers 404 for s.c.poeple; did you mean 's.c.people'?" in shared.failure()
    with pytest.raises(TarnError, match="answers 404"):
        shared.source.check()


def test_newer_tables_are_read_as_spark_reads_them_or_refused(project: Project) -> None:
    with tarfile.open(HERE / "golden/tables.tar.xz") as archive:
        archive.extractall(project.path / "golden", filter="data")
    shapes = (*ADVANCED, "mapping_partitioned")
    server = Sharing({f"s.c.{shape}": project.path / "golden" / shape for shape in shapes})
    with serving(server.answer) as address:
        (project.path / "p.share").write_text(json.dumps(profile(address, "bearer")))
        tables = [f"  {shape}: {{share: s, schema: c, write: replace}}" for shape in shapes]
        project.declare("spark", "delta_sharing", "p.share", "\n".join(tables))
        found = project.load("spark")
    assert "column mapping in a partitioned table" in str(found["mapping_partitioned"].error)
    for shape in ADVANCED:
        assert found[shape].error is None
        expected = EXPECTED[shape][max(EXPECTED[shape], key=int)]["rows"]
        found_rows = [list(row.values()) for row in project.rows(f"raw_spark.{shape}")]
        rows = [[str(v) if isinstance(v, Decimal) else v for v in row] for row in found_rows]
        assert sorted(rows, key=str) == sorted(expected, key=str), shape


def test_an_address_that_has_expired_is_asked_for_again(shared: Shared) -> None:
    shared.open()
    shared.server.broken.append(lambda answer: (403, {}, b"<Error>Request has expired</Error>"))
    assert shared.load() == (3, 3, 0, 0)


def test_a_file_that_is_cut_ends_the_load(shared: Shared) -> None:
    shared.open()
    shared.server.broken.append(lambda answer: (200, {}, answer[2][:-9]))
    assert "a file of the share was cut" in shared.failure()
    assert shared.load() == (3, 3, 0, 0)


def test_a_server_of_another_kind_is_told(shared: Shared) -> None:
    with serving(lambda request: (200, {}, b"<html>hello</html>")) as address:
        shared.open(endpoint=address)
        assert "does not answer as Delta Sharing does" in shared.failure()
    shared.open(endpoint="http://127.0.0.1:9")
    shared.source.client._sleeper = lambda seconds: None
    assert "cannot reach http://127.0.0.1:9" in shared.failure()


def test_secrets_are_known_to_the_mask(shared: Shared) -> None:
    for kind, secret in (("bearer", TOKEN), ("basic", PASSWORD), ("oauth", CLIENT_SECRET)):
        shared.open(kind)
        assert secret in shared.source.secrets
