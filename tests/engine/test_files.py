"""Files as they come: every format, every place, and dirt of which no row is half read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xlwt  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tarn.ingestion.declarations import declared
from tarn.ingestion.sources import Rejected
from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.csv.table import Options, TextTable
from tarn.ingestion.sources.files.objects import JsonFile
from tarn.ingestion.sources.files.source import Files
from tarn.ingestion.sources.files.text import in_utf8
from tarn.settings import settings
from tarn.storage.s3 import S3
from tests.engine.conftest import ROOT
from tests.engine.ingesting import Project, counts_of, project  # noqa: F401
from tests.engine.sftp import PASSWORD, serving_sftp
from tests.engine.upstreams import Request, serving

Cells = tuple[str | None, ...]
HEADER = ["DATE", "TIME", "Qty", "PRODUCTID", "Price", "Kind", "Description", "URL", "Comments"]
_COMMENTS = ["", "fine", "one, two; three", 'a "big" one', "line\nbreak", "5 x 4", "it's ok"]


def _record(i: int) -> list[str]:
    return [
        f"06/{i % 28 + 1:02}/2018",
        f"{i % 24:02}:48:{i % 60:02}",
        str(i % 5 + 1),
        f"F{i:04}",
        f"{i * 1.25:.2f}",
        f"T{i % 3}",
        f"Some, thing {i}",
        f"http://x.com/a?b={i}&c=d;e",
        _COMMENTS[i % len(_COMMENTS)],
    ]


RECORDS = [_record(i) for i in range(84)]
TRUTH = [tuple(cell or None for cell in record) for record in RECORDS]


def written(
    records: Sequence[Sequence[str]],
    delimiter: str = ",",
    quote: str = '"',
    newline: str = "\r\n",
    escape: str = "",
    all_quoted: bool = False,
) -> list[str]:
    """Records as lines of CSV."""
    special = (delimiter, quote, "\n", "\r", ",")

    def cell(text: str) -> str:
        if not (all_quoted or any(mark in text for mark in special)):
            return text
        if escape:
            return quote + text.replace("\\", "\\\\").replace(quote, escape + quote) + quote
        return quote + text.replace(quote, quote * 2) + quote

    return [delimiter.join(map(cell, record)) + newline for record in records]


LINES = written([HEADER, *RECORDS])


def read(folder: Path, content: str | bytes, **options: Any) -> tuple[list[Cells], list[Rejected]]:
    """Good rows and rejected lines; raises BrokenFileError."""
    table = opened(folder, content, **options)
    good: list[Cells] = []
    rejected: list[Rejected] = []
    for item in table.batches():
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            columns = [column.to_pylist() for column in item.columns[:-1]]
            good += list(zip(*columns, strict=True))
    return good, rejected


def opened(folder: Path, content: str | bytes, **options: Any) -> TextTable:
    file = folder / "x.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    encoding = options.pop("encoding", None)
    plain, _ = in_utf8(file, encoding, folder)
    return TextTable(plain, "x.csv", "x.csv", Options(**options), folder)


@pytest.mark.parametrize(
    "content",
    [
        *(pytest.param("".join(written([HEADER, *RECORDS], d)), id=f"delimiter {d!r}")
          for d in [",", ";", "\t", "|", "^", "~", ":", " ", ", ", "||", "\x01"]),
        pytest.param("".join(written([HEADER, *RECORDS], quote="'")), id="quote '"),
        pytest.param("".join(written([HEADER, *RECORDS], escape="\\")), id="backslash"),
        pytest.param("".join(written([HEADER, *RECORDS], all_quoted=True)), id="all quoted"),
        pytest.param("".join(written([HEADER, *RECORDS], newline="\n")), id="LF"),
        pytest.param("".join(written([HEADER, *RECORDS], newline="\r")), id="CR"),
        pytest.param("".join(LINES)[:-2], id="no newline at the end"),
        pytest.param("".join(LINES) + "\r\n\r\n", id="blank lines at the end"),
        pytest.param("".join([LINES[0], "\r\n", *LINES[1:]]), id="blank line"),
        pytest.param("Report, made\r\nby us\r\n\r\n" + "".join(LINES), id="preamble"),
        pytest.param("# a,b\r\n# c\r\n" + "".join(LINES), id="comments"),
        pytest.param("Title,,,,,,,,\r\n,,,,,,,,\r\n" + "".join(LINES), id="padded preamble"),
        pytest.param("".join([*LINES, ",,,,,,,,\r\n"]), id="empty record"),
        *(pytest.param("".join(LINES).encode(each), id=each)
          for each in ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    ],
)  # fmt: skip
def test_one_clear_table_is_read_whole_and_right(tmp_path: Path, content: str | bytes) -> None:
    good, rejected = read(tmp_path, content)
    assert good == TRUTH
    assert rejected == []


def _damaged(row: int, damage: Callable[[list[str]], list[str]], delimiter: str = ",") -> str:
    cells = [line[:-2] for line in written([[cell] for cell in [HEADER, *RECORDS][row]])]
    lines = list(LINES)
    lines[row] = delimiter.join(damage(cells)) + "\r\n"
    return "".join(lines)


def _without(column: int) -> Callable[[list[str]], list[str]]:
    return lambda cells: cells[:column] + cells[column + 1 :]


def _with_more(column: int) -> Callable[[list[str]], list[str]]:
    return lambda cells: [*cells[:column], "", *cells[column:]]


def _changed(column: int, change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda cells: [change(c) if i == column else c for i, c in enumerate(cells)]


_DAMAGES: dict[str, Callable[[int], Callable[[list[str]], list[str]]]] = {
    "a separator less": _without,
    "a separator more": _with_more,
    "a quote before": lambda column: _changed(column, lambda cell: '"' + cell),
    "a quote behind": lambda column: _changed(column, lambda cell: cell + '"'),
    "a NUL byte": lambda column: _changed(column, lambda cell: cell.rstrip('"') + "\0" + cell[:0]),
}


@pytest.mark.parametrize("damage", _DAMAGES)
@pytest.mark.parametrize("column", [0, 3, 8])
@pytest.mark.parametrize("row", [1, 2, 40, 83, 84])
def test_a_damaged_record_is_told_with_its_line_and_the_others_are_right(
    tmp_path: Path, row: int, column: int, damage: str
) -> None:
    content = _damaged(row, _DAMAGES[damage](column))
    good, rejected = read(tmp_path, content)
    assert Counter(good) - Counter(TRUTH) == Counter()
    assert Counter(TRUTH) - Counter(good) == Counter([TRUTH[row - 1]])
    line = 1 + "".join([*LINES[:row]]).count("\n")
    assert rejected[0].place == f"x.csv:{line}"


@pytest.mark.parametrize("delimiter", [" ", ";", "\t"])
def test_a_record_with_another_delimiter_is_told(tmp_path: Path, delimiter: str) -> None:
    good, rejected = read(tmp_path, _damaged(30, lambda cells: cells, delimiter))
    assert good == [*TRUTH[:29], *TRUTH[30:]]
    assert "not 9" in rejected[0].reason or "quote" in rejected[0].reason


def _narrow(width: int) -> str:
    wide = [[*record, "1"] for record in [HEADER, *RECORDS[:10]]]
    return "".join(written([record[:width] for record in wide]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("".join(LINES[1:]), "it has no header: line 1 holds values", id="no header"),
        pytest.param("".join(LINES) + _narrow(5), "lines have 5 fields", id="narrower table"),
        pytest.param("".join(LINES) + "\r\n" + _narrow(10), "have 10 fields", id="wider table"),
        pytest.param(
            "".join(LINES) + "\r\n" + "".join(written([list("ABCDEFGHI"), *RECORDS[:9]])),
            "another table begins on line 99",
            id="another table",
        ),
        pytest.param(
            "".join(LINES) + "".join(written([list("ABCDEFGHI"), *RECORDS[:9]])),
            "line 98 looks like the header of another table",
            id="another table at once",
        ),
        pytest.param(
            "".join(written([["A", "", "B", "", "", "C", "", "D", ""], HEADER, *RECORDS])),
            "5 of 9 columns have no name",
            id="header over two lines",
        ),
        pytest.param(_damaged(0, _without(3)), "line 1 has 8 fields|no header", id="short header"),
        pytest.param(
            _damaged(0, lambda c: ['"' + c[0], *c[1:]]), "malformed", id="quote in header"
        ),
        pytest.param("a,a\n1,2\n", "column a is named twice on line 1", id="repeated name"),
        pytest.param("a;b\n1;2\n3\n4\n5;6;7\n", "3 of 4 lines are no rows", id="ragged"),
        pytest.param("", "blank", id="nothing"),
        pytest.param("\n\n \n", "blank", id="blank"),
    ],
)
def test_what_is_not_one_clear_table_is_told_as_a_whole(
    tmp_path: Path, content: str, told: str
) -> None:
    with pytest.raises(BrokenFileError, match=told):
        read(tmp_path, content)


def test_lines_that_are_no_rows_are_told_and_those_around_them_kept(tmp_path: Path) -> None:
    units = ["d", "t", "n", "id", "eur", "x", "y", "z", "c"]
    total = ["Total", "", "99", "", "1234.00", "", "", "", ""]
    lines = written([HEADER, units, *RECORDS[:20], HEADER, *RECORDS[20:], total])
    good, rejected = read(tmp_path, "".join(lines) + "\r\nprinted on Monday\r\n")
    assert good == TRUTH
    assert [each.reason.partition(":")[0] for each in rejected] == [
        "stands between the header and the rows",
        "the header again",
        "1 fields, not 9",
        "looks like a line of totals",
    ]
    assert rejected[0].row["line"] == "d,t,n,id,eur,x,y,z,c"


def test_a_quote_that_is_never_closed_takes_only_its_line(tmp_path: Path) -> None:
    good, rejected = read(tmp_path, 'a,b\n"1,2\n3,4\n5,6\n')
    assert (good, [each.place for each in rejected]) == ([("3", "4"), ("5", "6")], ["x.csv:2"])
    assert read(tmp_path, 'a,b\n5" pipe,2\n')[0] == [('5" pipe', "2")]


def test_what_is_left_out_above_a_header_is_noted(tmp_path: Path) -> None:
    table = opened(tmp_path, "Report\n\n" + "".join(LINES))
    assert table.notes == ("lines 1 to 2 above the header left out",)
    table = opened(tmp_path, ",a,b\n1,x,y\n2,z,w\n")
    assert (table.names, table.notes) == (
        ("column_1", "a", "b"),
        ("columns without a name: column_1",),
    )


def test_a_declared_dialect_settles_what_cannot_be_told(tmp_path: Path) -> None:
    assert read(tmp_path, "1,5;2\n3,5;4\n", columns=("x", "y"))[0] == [("1,5", "2"), ("3,5", "4")]
    assert read(tmp_path, "2016,2017\n1,2\n3,4\n", header_row=1)[0] == [("1", "2"), ("3", "4")]
    assert read(tmp_path, "a~|~b\n1~|~2,3\n", delimiter="~|~")[0] == [("1", "2,3")]
    assert read(tmp_path, 'a,b\n"1,2\n"3,4\n', quote="")[0] == [('"1', "2"), ('"3', "4")]
    polish = "miasto,kod\nŁódź,1\nGdańsk,2\n"
    assert read(tmp_path, polish.encode("cp1250"), encoding="cp1250")[0][0] == ("Łódź", "1")


def test_western_text_is_read_and_said_so_but_no_other_encoding_is_guessed(tmp_path: Path) -> None:
    western = "ville,prix\nOrléans,5 €\nBesançon,6 €\nNîmes,7 €\nSaint-Étienne,8 €\n"
    (tmp_path / "f").write_bytes(western.encode("cp1252"))
    file, encoding = in_utf8(tmp_path / "f", None, tmp_path)
    assert (encoding, file.read_text(encoding="utf-8")) == ("cp1252", western)
    for text, name in (("Привет мир,это текст\n" * 9, "cp1251"), ("Łódź,Gdańsk\n" * 9, "cp1250")):
        with pytest.raises(BrokenFileError, match=r"not in UTF-8.*encoding"):
            read(tmp_path, text.encode(name))
    mixed = "ville,prix\n" + "Nîmes,7\n" * 9
    good, rejected = read(tmp_path, mixed.encode() + b"N\xeemes,8\n" + "Nîmes,9\n".encode())
    assert (len(good), rejected[0].place) == (10, "x.csv:11")


_TEXT = st.text(st.sampled_from("ab1 ,;|\t\"'\n\\é"), max_size=6)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records=st.lists(st.tuples(_TEXT, _TEXT), min_size=0, max_size=25),
    delimiter=st.sampled_from(",;\t|"),
    newline=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_whatever_python_writes_is_read_the_same_or_told(
    tmp_path: Path,
    records: list[tuple[str, str]],
    delimiter: str,
    newline: str,
    quoting: Any,
) -> None:
    """The property of it all: no row that is not in the file, none lost without a word."""
    rows = [(str(i), "2017-01-02", *texts) for i, texts in enumerate(records)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerows([("number", "day", "first word", "other word"), *rows])
    truth = Counter(tuple(cell or None for cell in row) for row in rows)
    try:
        good, rejected = read(tmp_path, text.getvalue())
    except BrokenFileError:
        return
    assert Counter(good) - truth == Counter()
    assert (truth - Counter(good)).total() <= len(rejected)


JSON_GOOD = {
    '[{"a":1},{"a":2}]': 2,
    '{"a":1}': 1,
    '{"a":1}{"a":2}': 2,
    '{"a":1}\n{"a":2}\n': 2,
    '{\n"a":1}\n{\n"a":2}\n': 2,
    '\ufeff[{"a":1}]': 1,
    '[{"a":"\\ud83d\\ude00"}]': 1,
    "[]": 0,
}
JSON_BAD = [
    '[{"a":1},]', '[{"a":1}', '[{"a":1} {"a":2}]', '[{"a":1}]]', '{"a":1}}', '[,{"a":1}]',
    '[{"a":NaN}]', '[{"a":-Infinity}]', '{"a":01}', '{"a":1.}', '{"a":.5}', '{"a":+1}', '{"a":0x1}',
    '{"a":1e}', "{'a':1}", "{a:1}", '{"a":"\x01"}', '{"a":"\\x"}', '{"a":"b"}x', '{"a" 1}',
    '{"a":1 "b":2}', '{"a":tru}', '{"a":1,}', '{"a":"b', '[{"a":1,"a":2}]', '[{"a":1,"A":2}]',
    "[" * 100_000, '[{"a":' + "[" * 60 + "]" * 60 + "}]", '"x"', "null", "123", "[1,2]", "{}", "",
    '[{"a":"\\ud800"}]', "<html></html>", '{"a":1}#', "[1,", "{", "[", '{"a":/*c*/1}',
]  # fmt: skip


def _json(folder: Path, content: str | bytes, name: str = "x.json") -> list[Any]:
    file = folder / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    plain, _ = in_utf8(file, None, folder, may_guess=False)
    return list(JsonFile(plain, name, name).items())


@pytest.mark.parametrize("content", JSON_BAD, ids=lambda text: text[:20])
def test_json_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    with pytest.raises(BrokenFileError):
        _json(tmp_path, content)


@pytest.mark.parametrize("content", JSON_GOOD)
def test_json_is_read_in_each_of_its_forms(tmp_path: Path, content: str) -> None:
    for text in (content.encode(), content.removeprefix("\ufeff").encode("utf-16")):
        assert len(_json(tmp_path, text)) == JSON_GOOD[content]


def test_numbers_that_no_column_holds_exactly_stay_text(tmp_path: Path) -> None:
    numbers = {
        "12345678901234567890": "12345678901234567890",
        "3.14159265358979323846": "3.14159265358979323846",
        "1e400": "1e400",
        "1e-400": "1e-400",
        "0.1": 0.1,
        "1.50": 1.5,
        "1.7976931348623157e308": 1.7976931348623157e308,
        "9223372036854775807": 9223372036854775807,
    }
    for written_number, value in numbers.items():
        (item,) = _json(tmp_path, f'[{{"n": {written_number}}}]')
        assert item["n"] == value
        assert type(item["n"]) is type(value)


def test_a_bad_line_of_json_lines_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b'{"a":%d}' % i for i in range(20)]
    lines[7], lines[12] = b'{"a":', b'{"a":"\xff"}'
    items = _json(tmp_path, b"\n".join(lines), "x.jsonl")
    told = [(each.place, each.reason) for each in items if isinstance(each, Rejected)]
    assert told == [
        ("x.jsonl:8", "no JSON: Expecting value"),
        ("x.jsonl:13", "bytes that are not UTF-8"),
    ]
    assert len(items) == 20


SALES = "  sales: {path: 'sales/*', write: append, columns: {sold_on: date}}"
GOOD = "sale_id,sold_on\n1,2017-01-01\n2,2017-01-02\n"


def test_a_broken_file_is_quarantined_once_and_the_others_load(project: Project) -> None:  # noqa: F811
    project.file("sales/good.csv", GOOD)
    project.file("sales/empty.csv", "")
    project.file("sales/page.csv", "<!DOCTYPE html><html><body>no such file</body></html>")
    project.file("sales/object.csv", '[{"sale_id": 1}]')
    folder = project.path / "drop/sales"
    pq.write_table(pa.table({"sale_id": [1]}), folder / "parquet.csv")
    (folder / "gzip.csv").write_bytes(gzip.compress(GOOD.encode()))
    (folder / "cut.csv.gz").write_bytes(gzip.compress(GOOD.encode() * 99)[:-20])
    project.declare("drop", "files", "drop", SALES)
    load = project.load()["sales"]
    assert counts_of(load) == (8, 2, 6, 0)
    rows = project.rows("quarantine_drop.sales", "_reason", "_reason")
    reasons = "\n".join(row["_reason"] for row in rows)
    for told in ("is Parquet", "is a web page", "is JSON", "is gzip", "is empty", "gzip in it"):
        assert told in reasons
    assert project.load()["sales"].status == "unchanged"
    project.file("sales/empty.csv", "sale_id,sold_on\n3,2017-01-03\n")
    assert counts_of(project.load()["sales"]) == (1, 1, 0, 0)
    project.file("sales/late.csv", "")
    refused = project.load()["sales"]
    assert (refused.status, "late.csv: the file is empty" in str(refused.error)) == ("failed", True)


def test_a_replaced_table_does_not_lose_the_rows_of_a_file_that_broke(project: Project) -> None:  # noqa: F811
    project.file("a.csv", "id,n\n1,x\n")
    project.file("b.csv", "id,n\n2,y\n")
    project.declare("drop", "files", "drop", "  ids: {path: '*.csv', write: replace}")
    project.load()
    project.file("b.csv", "")
    refused = project.load()["ids"]
    assert "b.csv is broken" in str(refused.error)
    assert len(project.rows("raw_drop.ids")) == 2


def test_bad_lines_are_kept_with_their_place(project: Project) -> None:  # noqa: F811
    lines = [f"{i},2017-01-{i:02}\n" for i in range(1, 20)]
    lines[4], lines[9] = "5,2017-01-05,surplus\n", "10,tomorrow\n"
    project.file("sales/a.csv", "sale_id,sold_on\n" + "".join(lines))
    project.declare("drop", "files", "drop", SALES)
    assert counts_of(project.load()["sales"]) == (19, 17, 2, 0)
    kept = json.dumps(
        [{k: str(v) for k, v in row.items()} for row in project.rows("quarantine_drop.sales")]
    )
    assert "sales/a.csv:6" in kept
    assert "sales/a.csv:11" in kept
    assert "_place" not in project.types("raw_drop.sales")


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def test_compressed_files_and_archives_are_read(project: Project) -> None:  # noqa: F811
    folder = project.path / "drop/sales"
    folder.mkdir(parents=True)
    for i, (name, pack) in enumerate(PACKED.items()):
        (folder / f"{i}.csv.{name}").write_bytes(
            pack(f"sale_id,sold_on\n{i},2017-01-01\n".encode())
        )
    with zipfile.ZipFile(folder / "many.csv.zip", "w") as archive:
        for i in (8, 9):
            archive.writestr(f"{i}.csv", f"sale_id,sold_on\n{i},2017-01-01\n")
    project.declare("drop", "files", "drop", SALES)
    assert counts_of(project.load()["sales"]) == (6, 6, 0, 0)
    found = {row["sale_id"]: row["_source_file"] for row in project.rows("raw_drop.sales")}
    assert sorted(found) == ["0", "1", "2", "3", "8", "9"]
    assert found["9"] == "sales/many.csv.zip"


def _sheet(cells: Sequence[Sequence[str]]) -> str:
    rows = "".join(f"<row>{''.join(row)}</row>" for row in cells)
    return f'<worksheet xmlns="{_MAIN}"><sheetData>{rows}</sheetData></worksheet>'


_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATED = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def _word(text: str) -> str:
    return f'<c t="inlineStr"><is><t>{text}</t></is></c>'


def _number(value: float, style: int = 0) -> str:
    return f'<c s="{style}"><v>{value}</v></c>'


def workbook(path: Path, sheets: dict[str, Sequence[Sequence[str]]]) -> None:
    """A minimal .xlsx; style 1 is a date."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    overrides = "".join(
        f'<Override PartName="/xl/worksheets/s{i}.xml" ContentType="{kind}.worksheet+xml"/>'
        for i in range(len(sheets))
    )
    named = "".join(
        f'<sheet name="{name}" sheetId="{i + 1}" r:id="r{i}"/>' for i, name in enumerate(sheets)
    )
    related = "".join(
        f'<Relationship Id="r{i}" Type="{_RELATED}/worksheet" Target="worksheets/s{i}.xml"/>'
        for i in range(len(sheets))
    )
    related += f'<Relationship Id="st" Type="{_RELATED}/styles" Target="styles.xml"/>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" '
            f'ContentType="application/xml"/><Default Extension="rels" ContentType='
            f'"application/vnd.openxmlformats-package.relationships+xml"/><Override '
            f'PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>{overrides}</Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r" '
            f'Type="{_RELATED}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELATED}"><sheets>{named}</sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{_PACKAGE}/relationships">{related}</Relationships>',
        )
        archive.writestr(
            "xl/styles.xml",
            f'<styleSheet xmlns="{_MAIN}"><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/>'
            "</cellXfs></styleSheet>",
        )
        for i, cells in enumerate(sheets.values()):
            archive.writestr(f"xl/worksheets/s{i}.xml", _sheet(cells))


def test_a_workbook_keeps_its_types_and_tells_faulty_cells(project: Project) -> None:  # noqa: F811
    folder = project.path / "drop"
    folder.mkdir()
    header = [_word("Code"), _word("Sold On"), _word("Price")]
    error = '<c t="e"><v>#DIV/0!</v></c>'
    formula = "<c><f>1+0.5</f><v>1.5</v></c>"
    rows = [
        [_word("Price list")],
        header,
        [_number(1), _number(42736, 1), formula],
        [_number(2), _number(42737, 1), _number(2)],
        [_number(3), _number(42738, 1), error],
    ]
    workbook(folder / "a.xlsx", {"Notes": [[_word("read me")]], "Prices": rows})
    prices = "  prices: {path: '*.xlsx', write: append, excel: {sheet: Prices}}"
    project.declare("drop", "files", "drop", prices)
    load = project.load()["prices"]
    assert counts_of(load) == (3, 2, 1, 0)
    assert load.notes == ("a.xlsx: rows 1 to 1 above the header left out",)
    landed = [tuple(row.values())[:3] for row in project.rows("raw_drop.prices")]
    assert landed == [(1, date(2017, 1, 1), 1.5), (2, date(2017, 1, 2), 2.0)]
    assert "#DIV/0!" in str(project.rows("quarantine_drop.prices"))
    # Whole prices only: the column stays what it is.
    workbook(folder / "b.xlsx", {"Prices": [header, [_number(4), _number(42739, 1), _number(9)]]})
    assert counts_of(project.load()["prices"]) == (1, 1, 0, 0)
    workbook(folder / "c.xlsx", {"Other": [header]})
    assert "no sheet 'Prices'; it has Other" in str(project.load()["prices"].error)


_OFFICE = "urn:oasis:names:tc:opendocument:xmlns"


def _cell(value: str | float | date) -> str:
    if isinstance(value, str):
        told = 'office:value-type="string"'
        return f"<table:table-cell {told}><text:p>{value}</text:p></table:table-cell>"
    kind, key = ("date", "date-value") if isinstance(value, date) else ("float", "value")
    return f'<table:table-cell office:value-type="{kind}" office:{key}="{value}"/>'


def open_document(path: Path, name: str, rows: Sequence[Sequence[str | float | date]]) -> None:
    """A minimal .ods of one sheet."""
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    lines = (f"<table:table-row>{''.join(map(_cell, row))}</table:table-row>" for row in rows)
    spaces = " ".join(f'xmlns:{n}="{_OFFICE}:{n}:1.0"' for n in ("office", "table", "text"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", kind)
        archive.writestr(
            "META-INF/manifest.xml",
            f'<manifest:manifest xmlns:manifest="{_OFFICE}:manifest:1.0"><manifest:file-entry '
            f'manifest:full-path="/" manifest:media-type="{kind}"/></manifest:manifest>',
        )
        archive.writestr(
            "content.xml",
            f"<office:document-content {spaces}><office:body><office:spreadsheet>"
            f'<table:table table:name="{name}">{"".join(lines)}</table:table>'
            "</office:spreadsheet></office:body></office:document-content>",
        )


def old_workbook(path: Path, name: str, rows: Sequence[Sequence[str | float | date]]) -> None:
    """An .xls of one sheet."""
    book = xlwt.Workbook()
    sheet = book.add_sheet(name)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            form = "YYYY-MM-DD" if isinstance(value, date) else "General"
            sheet.write(i, j, value, xlwt.easyxf(num_format_str=form))
    book.save(str(path))


@pytest.mark.parametrize(("suffix", "write"), [("ods", open_document), ("xls", old_workbook)])
def test_other_workbooks_are_read_as_xlsx_is(
    project: Project,  # noqa: F811
    suffix: str,
    write: Callable[[Path, str, Sequence[Sequence[str | float | date]]], None],
) -> None:
    folder = project.path / "drop"
    folder.mkdir()
    header = ["Code", "Sold On", "Price"]
    rows = [(1, date(2017, 1, 1), 1.5), (2, date(2017, 1, 2), 2.0)]
    write(folder / f"a.{suffix}", "Prices", [header, *rows])
    project.declare("drop", "files", "drop", f"  prices: {{path: '*.{suffix}', write: append}}")
    assert counts_of(project.load()["prices"]) == (2, 2, 0, 0)
    landed = [tuple(row.values())[:3] for row in project.rows("raw_drop.prices")]
    assert landed == rows


MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
AVRO = {
    "type": "record",
    "name": "event",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "price", "type": ["null", MONEY]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}  # fmt: skip


def test_avro_and_parquet_keep_their_types_and_broken_ones_are_told(project: Project) -> None:  # noqa: F811
    folder = project.path / "drop"
    folder.mkdir()
    row = {
        "id": 1,
        "at": datetime(2017, 1, 1, tzinfo=UTC),
        "price": Decimal("1.50"),
        "day": date(2017, 1, 1),
        "tags": ["a", "b"],
    }
    with (folder / "a.avro").open("wb") as opened_file:
        fastavro.writer(opened_file, AVRO, [row, {**row, "id": 2, "price": None}])
    content = (folder / "a.avro").read_bytes()
    (folder / "b.avro").write_bytes(content[:-9])
    tables = "  events: {path: '*.avro', write: append}\n  rows: {path: '*.parquet', write: append}"
    project.declare("drop", "files", "drop", tables)
    big = pa.table({"id": list(range(200_000)), "word": [f"w{i}" for i in range(200_000)]})
    pq.write_table(big, folder / "good.parquet", row_group_size=20_000)
    data = bytearray((folder / "good.parquet").read_bytes())
    (folder / "cut.parquet").write_bytes(data[:-100])
    data[len(data) // 2 : len(data) // 2 + 5000] = b"\xee" * 5000
    (folder / "spoilt.parquet").write_bytes(data)
    loads = project.load()
    assert counts_of(loads["events"]) == (3, 2, 1, 0)
    assert counts_of(loads["rows"]) == (200_002, 200_000, 2, 0)
    assert project.rows("raw_drop.events")[0] == {
        **row,
        "at": datetime(2017, 1, 1),
        "_source_file": "a.avro",
    }


def test_a_file_that_is_being_written_waits_and_static_ones_do_not(project: Project) -> None:  # noqa: F811
    project.file("sales/a.csv", GOOD)
    project.file("sales/b.csv.part", GOOD)
    project.file("sales/.hidden.csv", GOOD)
    project.file("sales/_SUCCESS", "")
    project.declare("drop", "files", "drop", SALES)
    with (project.path / "drop/sales/c.csv").open("w") as growing:
        growing.write("sale_id,sold_on\n3,2017-")
        growing.flush()
        load = project.load()["sales"]
        assert counts_of(load) == (2, 2, 0, 0)
        assert load.notes == (
            "sales/b.csv.part is incomplete by its name",
            "sales/c.csv is being written",
        )
        assert project.load()["sales"].notes == load.notes
        growing.write("01-03\n")
    (project.path / "drop/sales/b.csv.part").unlink()
    load = project.load()["sales"]
    assert (counts_of(load), load.notes) == ((1, 1, 0, 0), ())


def test_a_marker_says_when_a_delivery_is_complete(project: Project) -> None:  # noqa: F811
    project.file("2017/01/part-0.csv", GOOD)
    project.file("2017/02/part-0.csv", GOOD.replace("1,", "3,"))
    project.file("2017/01/_SUCCESS", "")
    table = "  sales: {path: '**/*.csv', write: append, wait_for: _SUCCESS}"
    project.declare("drop", "files", "drop", table)
    load = project.load()["sales"]
    assert counts_of(load) == (2, 2, 0, 0)
    assert load.notes == ("2017/02/part-0.csv waits for 2017/02/_SUCCESS",)
    project.file("2017/02/_SUCCESS", "")
    assert counts_of(project.load()["sales"]) == (2, 2, 0, 0)


def _twice(project: Project, change: Callable[[], object]) -> None:  # noqa: F811
    """Everything once, nothing again, then what changed."""
    assert counts_of(project.load()["sales"]) == (4, 4, 0, 0)
    assert project.load()["sales"].status == "unchanged"
    change()
    assert counts_of(project.load()["sales"]) == (1, 1, 0, 0)
    assert sorted(row["sale_id"] for row in project.rows("raw_drop.sales")) == ["1", "2", "9"]


def test_files_are_read_from_s3(
    project: Project,  # noqa: F811
    s3: dict[str, str],
    on_s3: str,
) -> None:
    store = S3(s3).store(on_s3)
    for name in ("sales/a.csv", "sales/2017/b.csv"):
        obstore.put(store, name, GOOD.encode())
    project.declare("drop", "files", on_s3, "  sales: {path: 'sales/**/*.csv', write: append}")
    change = b"sale_id,sold_on\n9,2017-01-09\n"
    _twice(project, lambda: obstore.put(store, "sales/a.csv", change))
    project.declare("drop", "files", "s3://missing/x", SALES)
    assert "there is no bucket missing" in str(project.load()["sales"].error)


def test_files_are_read_from_sftp_if_the_server_is_known(
    project: Project,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(project.path))
    for name in ("sales/a.csv", "sales/2017/b.csv"):
        project.file(name, GOOD)
    with serving_sftp(project.path / "drop") as server:
        monkeypatch.setenv("SFTP_PASSWORD", server.address.split(":")[2].split("@")[0])
        address = server.address.replace(
            server.address.split(":")[2].split("@")[0], "${SFTP_PASSWORD}"
        )
        project.declare(
            "drop", "files", f'"{address}"', "  sales: {path: 'sales/**/*.csv', write: append}"
        )
        settings.cache_clear()
        refused = project.load()["sales"]
        assert "the key of 127.0.0.1 is not known" in str(refused.error)
        (project.path / ".ssh").mkdir()
        (project.path / ".ssh/known_hosts").write_text(server.known_host)
        _twice(project, lambda: project.file("sales/a.csv", "sale_id,sold_on\n9,2017-01-09\n"))
        monkeypatch.setenv("SFTP_PASSWORD", "wrong-word")
        settings.cache_clear()
        refused = project.load()["sales"]
        assert "does not accept the user" in str(refused.error)
        assert PASSWORD not in str(refused)
        assert "wrong-word" not in str(refused)


@pytest.mark.parametrize("told", ["nothing", "last-modified", "etag"])
def test_files_are_read_from_a_web_server(project: Project, told: str) -> None:  # noqa: F811
    files = {"a.csv": GOOD.encode(), "b.csv": GOOD.encode()}
    versions = dict.fromkeys(files, 1)

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        name = request.path.removeprefix("/out/")
        if not name:
            links = "".join(f'<a href="{each}">{each}</a>' for each in [*files, "readme.txt"])
            return 200, {"content-type": "text/html"}, f"<html>{links}</html>".encode()
        if name not in files:
            return 404, {}, b"no such file"
        headers = {
            "nothing": {},
            "last-modified": {"last-modified": f"Sun, 0{versions[name]} Jan 2017 00:00:00 GMT"},
            "etag": {"etag": f'"{versions[name]}"'},
        }[told]
        return 200, headers, files[name]

    def change() -> None:
        files["a.csv"], versions["a.csv"] = b"sale_id,sold_on\n9,2017-01-09\n", 2

    with serving(answer) as address:
        project.declare(
            "drop", "files", f"{address}/out", "  sales: {path: '*.csv', write: append}"
        )
        _twice(project, change)
        one = "  sales: {path: [a.csv, gone.csv], write: append}"
        project.declare("drop", "files", f"{address}/out", one)
        assert project.load()["sales"].status == "unchanged"


def _source(project: Project) -> Files:  # noqa: F811
    home = settings()
    (one,) = declared(project.path / "ingestion", ["drop"])
    return Files(one.resolved(home), home)


def test_a_source_says_what_its_files_are_like(project: Project) -> None:  # noqa: F811
    project.file("sales/a.csv", GOOD.replace(",", ";"))
    project.file("sales/b.csv", GOOD)
    project.file("sales/c.csv", "")
    project.declare("drop", "files", "drop", SALES)
    assert _source(project).check() == [
        "drop can be listed",
        'sales: 3 files, 1 with delimiter ;, quote ", 2 columns; 1 with delimiter ,, quote ",'
        " 2 columns",
        "sales: sales/c.csv is broken: the file is empty: it has not even a header",
    ]


def test_a_source_offers_a_table_for_each_kind_of_file(project: Project) -> None:  # noqa: F811
    for month in ("01", "02"):
        project.file(f"sales_2017_{month}.csv", GOOD)
    project.file("stores.json", '[{"store_id": "007", "open": true}, {"store_id": "008"}]')
    pq.write_table(pa.table({"week": [1]}), project.path / "drop/promotions.parquet")
    project.declare("drop", "files", "drop", SALES)
    found = {each.name: each for each in _source(project).offered()}
    assert {name: each.spec for name, each in found.items()} == {
        "promotions": {"path": "promotions.parquet", "write": "append"},
        "sales": {
            "path": "sales_*.csv",
            "write": "merge",
            "primary_key": ["sale_id"],
            "columns": {"sale_id": "bigint", "sold_on": "date"},
        },
        "stores": {"path": "stores.json", "write": "merge", "primary_key": ["store_id"]},
    }
    assert found["stores"].columns == {"store_id": "text", "open": "boolean"}


def test_the_page_about_files_declares_what_can_be_declared(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/load-files.md").read_text()
    (tmp_path / "suppliers.yml").write_text(page.split("```yaml\n")[1].split("```")[0])
    (one,) = declared(tmp_path)
    assert sorted(one.system.tables) == ["deliveries", "price_lists"]
