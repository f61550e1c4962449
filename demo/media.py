"""The media library: drawn pictures of the best-selling products and recordings of service calls.

One picture is a PNG that somebody saved as .jpg, as happens.
"""

import io
import math
import os
import wave
from colorsys import hsv_to_rgb
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from demo import source
from demo.source import report

PICTURES, CALLS = 48, 24
SIDE = 240
"""Width and height of a picture in pixels."""
HERTZ = 8000
ADDED_AT = datetime(2017, 12, 31, 12, tzinfo=UTC)
"""When all files say they were changed last."""
BEST_SELLERS = f"""
    select product_id, product_type, product_category, department
    from transactions inner join products using (product_id)
    where product_type is not null
    group by all order by sum(sales_value) desc, product_id limit {PICTURES}
"""
# A household calls at 10:00 UTC a week after its largest basket.
CALLERS = f"""
    select household_id, strftime(cast(max_by(transaction_timestamp, value) as date)
        + interval 7 day + interval 10 hour, '%Y-%m-%dT%H-%M-%SZ') as called_at
    from (
        select household_id, basket_id, min(transaction_timestamp) as transaction_timestamp,
            sum(sales_value) as value
        from transactions group by all
    )
    group by household_id order by max(value) desc, household_id limit {CALLS}
"""
EXIF_DESCRIPTION, EXIF_SOFTWARE = 0x010E, 0x0131


def make(folder: Path) -> None:
    """Write product_pictures/<product>.jpg and call_recordings/<when>_household_<id>.wav."""
    with source.connect(threads=1) as session:
        _pictures(session, folder / "product_pictures")
        _calls(session, folder / "call_recordings")


def _pictures(session: duckdb.DuckDBPyConnection, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, (product, name, *kinds) in enumerate(session.execute(BEST_SELLERS).fetchall()):
        drawn = _drawn(name, hue=number / PICTURES)
        told = f"{name}, {', '.join(kinds)}"
        content = _png(drawn, told) if number == PICTURES - 1 else _jpeg(drawn, told)
        _write(folder / f"{product}.jpg", content)
    report(f"media: {PICTURES:>6} product pictures")


def _drawn(name: str, hue: float) -> Image.Image:
    """A package on a shelf with its name on it."""
    red, green, blue = (int(255 * part) for part in hsv_to_rgb(hue, 0.5, 0.8))
    picture = Image.new("RGB", (SIDE, SIDE), (245, 243, 238))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 200, SIDE, SIDE), fill=(205, 190, 170))
    pen.rounded_rectangle((50, 30, 190, 205), radius=12, fill=(red, green, blue))
    pen.rectangle((50, 90, 190, 150), fill=(255, 255, 255))
    words = name.split(" ", 2)
    text = "\n".join(word[:16] for word in words)
    font = ImageFont.load_default(15)
    pen.multiline_text((120, 120), text, fill=(40, 40, 40), font=font, anchor="mm", align="center")
    return picture


def _jpeg(picture: Image.Image, description: str) -> bytes:
    exif = Image.Exif()
    exif[EXIF_DESCRIPTION] = description
    exif[EXIF_SOFTWARE] = "Tarn demo"
    made = io.BytesIO()
    picture.save(made, "JPEG", quality=80, exif=exif)
    return made.getvalue()


def _png(picture: Image.Image, description: str) -> bytes:
    told = PngImagePlugin.PngInfo()
    told.add_text("Description", description)
    made = io.BytesIO()
    picture.save(made, "PNG", pnginfo=told)
    return made.getvalue()


def _calls(session: duckdb.DuckDBPyConnection, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, (household, called_at) in enumerate(session.execute(CALLERS).fetchall()):
        _write(folder / f"{called_at}_household_{household}.wav", _tones(number))
    report(f"media: {CALLS:>6} call recordings")


def _tones(number: int) -> bytes:
    """Two voices taking turns, one to three and a half seconds in all; mono, 8 bits."""
    seconds = 1 + number * 7 % 11 / 4
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 1, HERTZ, 0, "NONE", "not compressed"))
        file.writeframes(bytes(_loudness(i, number) for i in range(int(seconds * HERTZ))))
    return made.getvalue()


def _loudness(frame: int, number: int) -> int:
    pitch = (180 if frame // (HERTZ // 2) % 2 else 120) + 3 * number
    return 128 + round(60 * math.sin(2 * math.pi * pitch * frame / HERTZ))


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    os.utime(file, (ADDED_AT.timestamp(),) * 2)
