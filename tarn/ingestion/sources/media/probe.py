"""What a picture or a sound says of itself, read with bounded memory whatever the file claims."""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

import puremagic
from PIL import ExifTags, Image, UnidentifiedImageError
from tinytag import TinyTag, TinyTagException

_EXTENSIONS = {
    "image/jpeg": ("jpg", "jpeg", "jpe", "jfif"),
    "image/png": ("png", "apng"),
    "image/gif": ("gif",),
    "image/webp": ("webp",),
    "image/tiff": ("tif", "tiff"),
    "image/bmp": ("bmp", "dib"),
    "image/avif": ("avif",),
    "image/heif": ("heic", "heif"),
    "audio/mpeg": ("mp3", "mpga"),
    "audio/wav": ("wav", "wave"),
    "audio/flac": ("flac",),
    "audio/ogg": ("ogg", "oga", "opus", "spx"),
    "audio/mp4": ("m4a", "m4b", "m4r", "f4a"),
    "audio/aiff": ("aif", "aiff", "aifc"),
}
_SPELT = {
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "image/x-ms-bmp": "image/bmp",
    "application/ogg": "audio/ogg",
    "audio/x-aiff": "audio/aiff",
}
_UNOPENED = ("image/heif",)
"""No decoder for them is installed: they are catalogued without width and height."""
_HEAD = 8192
MOST_PIXELS = 30_000_000
"""A larger picture is not decoded to see whether it is whole, but for JPEG, whose decoder can
leave out pixels, and PNG, which has checksums."""
_LONGEST_TAG = 2000
_SUB_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


class NotMediaError(Exception):
    """The file is no picture or sound, or not a whole one; the message says which."""


def media_type(file: IO[bytes]) -> str:
    """The type of a file by its content, whatever it is called."""
    file.seek(0)
    head = file.read(_HEAD)
    if not head:
        raise NotMediaError("the file is empty")
    found = []
    with suppress(puremagic.PureError):
        found = [each.mime_type or each.extension for each in puremagic.magic_string(head)]
    types = ["audio/mp4" if each == ".m4a" else _SPELT.get(each, each) for each in found]
    known = next((each for each in types if each in _EXTENSIONS), None)
    # What is likelier a film than a sound in a film's container is a film.
    if known is None or types[0].startswith("video/"):
        told = next((each for each in types if "/" in each), "of no known type")
        raise NotMediaError(f"no picture or sound that is catalogued: it is {told}")
    return known


def extension_matches(media_type: str, path: str) -> bool:
    """Whether the name ends as names of that type do."""
    return path.rpartition(".")[2].lower() in _EXTENSIONS[media_type]


def described(file: IO[bytes], media_type: str, size: int) -> Mapping[str, Any]:
    """width, height, duration_seconds and tags; raises NotMediaError for a broken file."""
    nothing = {"width": None, "height": None, "duration_seconds": None, "tags": None}
    if media_type in _UNOPENED:
        return nothing
    read = _picture if media_type.startswith("image/") else _sound
    try:
        _check_length(file, media_type, size)
        file.seek(0)
        return {**nothing, **read(file)}
    except UnidentifiedImageError as error:
        raise NotMediaError(f"broken {media_type}: its header cannot be read") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
        raise NotMediaError(f"broken {media_type}: {error}") from error
    except TinyTagException as error:
        raise NotMediaError(f"broken {media_type}: {error or 'cut off'}") from error


def _picture(file: IO[bytes]) -> dict[str, Any]:
    # Only headers of large pictures are read, so their claims cost nothing.
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(file) as picture:
        width, height = picture.size
        found = dict(_picture_tags(picture))
        if picture.format in ("JPEG", "MPO"):
            picture.draft("L", (max(width // 8, 1), max(height // 8, 1)))
            picture.load()
        elif picture.format != "PNG" and width * height <= MOST_PIXELS:
            picture.load()
    file.seek(0)
    if picture.format == "PNG":
        with Image.open(file) as again:
            again.verify()
    return {"width": width, "height": height, "tags": _as_json(found)}


def _picture_tags(picture: Image.Image) -> Iterator[tuple[str, Any]]:
    for name, value in picture.info.items():
        # "comment" of a JPEG or GIF is bytes; other bytes are pictures and profiles.
        if isinstance(value, str) or name == "comment":
            yield str(name), value
    if picture.format == "PNG" and "exif" not in picture.info:
        return  # It would be looked for behind the pixels, and they be decoded.
    exif = picture.getexif()
    for number, value in exif.items():
        yield ExifTags.TAGS.get(number, str(number)), value
    for folder in _SUB_FOLDERS:
        names = ExifTags.GPSTAGS if folder is ExifTags.IFD.GPSInfo else ExifTags.TAGS
        for number, value in exif.get_ifd(folder).items():
            yield names.get(number, str(number)), value


def _sound(file: IO[bytes]) -> dict[str, Any]:
    tag = TinyTag.get(file_obj=file)  # type: ignore[arg-type]
    if not tag.duration:
        raise NotMediaError("broken sound: it has no duration")
    technical = ("filename", "filesize", "duration")
    found = {name: value for name, value in tag.as_dict().items() if name not in technical}
    return {"duration_seconds": round(float(tag.duration), 3), "tags": _as_json(found)}


def _check_length(file: IO[bytes], media_type: str, size: int) -> None:
    """Containers say how long they are; decoders do not all look."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and struct.unpack("<I", head[4:8])[0] + 8 > size:
        raise NotMediaError(f"broken {media_type}: the file is cut off")
    if media_type == "audio/mp4":
        at = 0
        while at + 8 <= size:
            at += _box_length(file, at, size)
        if at > size:
            raise NotMediaError(f"broken {media_type}: the file is cut off")


def _box_length(file: IO[bytes], at: int, size: int) -> int:
    """Of the MPEG-4 box that begins there, head included."""
    file.seek(at)
    length, _, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
    if length == 1:
        length = long
    elif length == 0:
        length = size - at
    if length < 8:
        raise NotMediaError("broken audio/mp4: a box without length")
    return int(length)


def _as_json(tags: Mapping[str, Any]) -> str | None:
    plain = {name: _plain(value) for name, value in tags.items()}
    kept = {name: value for name, value in sorted(plain.items()) if value not in (None, "", [])}
    return json.dumps(kept, ensure_ascii=False) if kept else None


def _plain(value: Any) -> Any:
    """A tag's value as JSON has it; None for binary ones and those too long to be told."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return _plain(value.removeprefix(b"ASCII\0\0\0").decode())
        return None
    if isinstance(value, str):
        text = value.strip("\0 ").encode("utf-8", "replace").decode()
        return text if len(text) <= _LONGEST_TAG and "\0" not in text else None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple) and len(value) == 1:
        return _plain(value[0])
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value][:100]
    if isinstance(value, Mapping):
        return None
    with suppress(TypeError, ValueError, ZeroDivisionError, OverflowError):
        number = float(value)
        return number if number == number and abs(number) != float("inf") else None
    return str(value)
