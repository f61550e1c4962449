"""Pictures and sounds, catalogued: real files of each format, and what is wrong with some."""

import io
import json
import os
import struct
import subprocess
import sys
import wave
import zlib
from pathlib import Path

import obstore
import pytest
from PIL import Image, PngImagePlugin

from tarn.ingestion.declarations import declare
from tarn.ingestion.engine import ingest
from tarn.ingestion.options import Options
from tarn.ingestion.sources.media.source import Media
from tarn.settings import settings
from tarn.storage.s3 import S3
from tests.engine.conftest import s3
from tests.engine.ingesting import Project, Row, counts_of, project

__all__ = ["project", "s3"]

TABLE = '  files:\n    path: "**/*"'
FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30), **saved: object) -> bytes:
    made = io.BytesIO()
    noise = Image.effect_noise(size, 50).convert("RGB")
    noise.save(made, kind, **saved)
    return made.getvalue()


def sound(seconds: float = 1.5) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes(int(8000 * seconds)))
    return made.getvalue()


def mp3(title: str) -> bytes:
    """A second and a half of silence, 128 kbit/s at 44.1 kHz, with a title."""
    text = b"\3" + title.encode()
    frame = b"TIT2" + struct.pack(">IH", len(text), 0) + text
    head = b"ID3\3\0\0" + struct.pack(">I", len(frame))
    return head + frame + (b"\xff\xfb\x90\x64" + bytes(413)) * 57


def flac() -> bytes:
    """The head of a sound of two seconds at 8 kHz."""
    rate, samples = 8000, 16000
    packed = (rate << 44) | (15 << 36) | samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


class Shelf:
    """A folder of media and the system that catalogues it."""

    def __init__(self, project: Project) -> None:
        self.project, self.folder = project, project.path / "shelf"
        self.folder.mkdir()
        self.declare()

    def declare(self, more: str = "") -> None:
        self.project.declare("library", "media", "shelf", TABLE + more)

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def load(self) -> tuple[int, int, int, int]:
        loaded = self.project.load("library")["files"]
        assert loaded.error is None
        return counts_of(loaded)

    def rows(self, columns: str = "*") -> list[Row]:
        return self.project.rows("raw_library.files", columns, "path")

    def reasons(self) -> dict[str, str]:
        found = self.project.rows("quarantine_library.files", "_row, _reason")
        return {json.loads(row["_row"])["path"]: row["_reason"] for row in found}


@pytest.fixture
def shelf(project: Project) -> Shelf:
    return Shelf(project)


def test_pictures_of_each_format_are_measured(shelf: Shelf) -> None:
    for suffix, kind in FORMATS.items():
        shelf.put(f"pictures/a.{suffix}", picture(kind))
    assert shelf.load() == (6, 6, 0, 0)
    for row in shelf.rows():
        kind = FORMATS[row["path"].rpartition(".")[2]].lower()
        assert (row["media_type"], row["extension_matches"]) == (f"image/{kind}", True)
        assert (row["width"], row["height"], row["duration_seconds"]) == (40, 30, None)
        assert len(row["sha256"]) == 64
        assert row["bytes"] == (shelf.folder / row["path"]).stat().st_size
    assert shelf.load() == (0, 0, 0, 0)


def test_sounds_are_timed(shelf: Shelf) -> None:
    for name, content in {"a.wav": sound(), "b.mp3": mp3("Später"), "c.flac": flac()}.items():
        shelf.put(name, content)
    assert shelf.load() == (3, 3, 0, 0)
    found = shelf.rows("path, media_type, duration_seconds, width, tags")
    assert [row["media_type"] for row in found] == ["audio/wav", "audio/mpeg", "audio/flac"]
    assert [round(row["duration_seconds"], 1) for row in found] == [1.5, 1.5, 2.0]
    assert json.loads(found[1]["tags"])["title"] == "Später"
    assert found[0]["width"] is None


def test_tags_are_json_text(shelf: Shelf) -> None:
    exif = Image.Exif()
    exif[0x010E] = "A jar of plum jam"
    exif[0x829A] = 0.5
    shelf.put("a.jpg", picture(exif=exif, comment=b"by hand"))
    described = PngImagePlugin.PngInfo()
    described.add_itxt("Description", "Käse")
    shelf.put("b.png", picture("PNG", pnginfo=described))
    shelf.load()
    jpeg, png = (json.loads(row["tags"]) for row in shelf.rows("path, tags"))
    assert (jpeg["ImageDescription"], jpeg["comment"]) == ("A jar of plum jam", "by hand")
    assert png["Description"] == "Käse"


def test_a_wrong_extension_is_noted(shelf: Shelf) -> None:
    shelf.put("a.png", picture("JPEG"))
    shelf.put("b.mp3", sound())
    shelf.put("c.JPG", picture("JPEG"))
    shelf.load()
    found = shelf.rows("path, media_type, extension_matches")
    assert [tuple(row.values())[1:] for row in found] == [
        ("image/jpeg", False),
        ("audio/wav", False),
        ("image/jpeg", True),
    ]


def test_broken_and_foreign_files_are_quarantined_and_stop_nothing(shelf: Shelf) -> None:
    shelf.put("good.png", picture("PNG"))
    for suffix, kind in FORMATS.items():
        whole = picture(kind, (200, 200))
        shelf.put(f"cut.{suffix}", whole[: len(whole) // 2])
    shelf.put("cut.wav", sound()[:-100])
    shelf.put("empty.jpg", b"")
    shelf.put("notes.txt", b"no picture at all\n")
    shelf.put("film.mp4", struct.pack(">I", 24) + b"ftypisom\0\0\0\0isommp42" + bytes(40))
    assert shelf.load() == (11, 1, 10, 0)
    reasons = shelf.reasons()
    assert reasons["empty.jpg"] == "the file is empty"
    assert "no picture or sound" in reasons["notes.txt"]
    assert "video/mp4" in reasons["film.mp4"]
    assert all("broken" in reasons[f"cut.{suffix}"] for suffix in [*FORMATS, "wav"])
    assert shelf.load() == (0, 0, 0, 0), "what is known to be broken is not read again"


def test_a_claim_of_a_million_million_pixels_costs_no_memory(shelf: Shelf) -> None:
    shelf.put("bomb.png", bomb(1_000_000, 1_000_000))
    shelf.put("large.png", bomb(20_000, 20_000))
    # Not getrusage, which counts what the parent held when it forked.
    measure = "from tarn.ingestion.engine import ingest; ingest(['library'])"
    measure += "; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", measure]
    done = subprocess.run(command, capture_output=True, text=True, cwd=shelf.project.path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700_000, "kilobytes; 20,000 by 20,000 pixels would take 1,200,000"
    found = [(row["width"], row["height"]) for row in shelf.rows()]
    assert found == [(1_000_000, 1_000_000), (20_000, 20_000)]


def test_a_replaced_catalogue_shows_what_is_there_and_reads_what_is_new(shelf: Shelf) -> None:
    a, b = shelf.put("a.jpg", picture()), shelf.put("b.jpg", picture())
    shelf.load()
    before = {row["path"]: row["sha256"] for row in shelf.rows()}
    a.chmod(0)  # An unchanged file is not opened; root could.
    b.unlink()
    shelf.put("c.wav", sound())
    assert shelf.load() == (2, 2, 0, 0)
    assert [row["path"] for row in shelf.rows()] == ["a.jpg", "c.wav"]
    assert shelf.rows()[0]["sha256"] == before["a.jpg"]
    shelf.put("b.jpg", picture())
    shelf.load()
    assert [row["path"] for row in shelf.rows()] == ["a.jpg", "b.jpg", "c.wav"]


def test_an_empty_folder_does_not_empty_the_catalogue_unasked(shelf: Shelf) -> None:
    shelf.put("a.jpg", picture()).unlink()
    assert "no file matches" in str(shelf.project.load("library")["files"].error)
    shelf.put("a.jpg", picture())
    shelf.load()
    (shelf.folder / "a.jpg").unlink()
    assert "the source is empty" in str(shelf.project.load("library")["files"].error)
    shelf.declare("\n    allow_empty: true")
    shelf.load()
    assert shelf.rows() == []


def test_a_merged_catalogue_keeps_what_is_gone_with_a_mark(shelf: Shelf) -> None:
    shelf.declare("\n    write: merge")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shelf.put(name, picture())
    shelf.load()
    (shelf.folder / "b.jpg").unlink()
    shelf.put("c.jpg", b"no longer a picture")
    assert shelf.load() == (3, 2, 1, 0)
    gone = {row["path"]: row["is_gone"] for row in shelf.rows()}
    assert gone == {"a.jpg": False, "b.jpg": True, "c.jpg": True}
    assert shelf.load() == (0, 0, 0, 0)
    shelf.put("b.jpg", picture())
    assert shelf.load() == (1, 1, 0, 0)
    assert [row["is_gone"] for row in shelf.rows()] == [False, False, True]


def test_a_changed_picture_is_catalogued_anew(shelf: Shelf) -> None:
    path = shelf.put("a.jpg", picture())
    shelf.load()
    shelf.put("a.jpg", picture(size=(80, 60)))
    os.utime(path, (1_500_000_000, 1_500_000_000))
    assert shelf.load() == (1, 1, 0, 0)
    (row,) = shelf.rows()
    assert (row["width"], str(row["modified_at"])) == (80, "2017-07-14 02:40:00")


def test_columns_do_not_depend_on_what_is_there(shelf: Shelf) -> None:
    shelf.put("a.wav", sound())
    shelf.load()
    before = shelf.project.types("raw_library.files")
    shelf.put("b.jpg", picture())
    shelf.load()
    assert shelf.project.types("raw_library.files") == before
    assert before["width"] == "int32"
    assert before["duration_seconds"] == "double"


def test_media_on_s3_are_catalogued_too(project: Project, s3: dict[str, str], on_s3: str) -> None:
    store = S3(s3).store(on_s3)
    obstore.put(store, "covers/a.png", picture("PNG"))
    obstore.put(store, "covers/b.wav", sound()[:-9])
    project.declare("library", "media", on_s3, TABLE)
    assert ingest(["library"], options=Options(dry_run=True))[0].rows.accepted == 1
    assert counts_of(project.load("library")["files"]) == (2, 1, 1, 0)
    assert counts_of(project.load("library")["files"]) == (0, 0, 0, 0)
    (row,) = project.rows("raw_library.files")
    assert (row["path"], row["width"]) == ("covers/a.png", 40)


def test_a_folder_offers_a_table_for_each_folder_in_it(shelf: Shelf) -> None:
    shelf.put("covers/a.jpg", picture())
    shelf.put("talks/2024/b.wav", sound())
    source = Media(declare(shelf.project.path / "ingestion/library.yml"), settings())
    offered = [(each.name, each.spec["path"]) for each in source.offered()]
    assert offered == [("covers", "covers/**/*"), ("talks", "talks/**/*")]
    assert source.check() == ["files: 2 files match **/*"]
