"""Numbers and dates as text, by d3's format strings, so that tables, figures and charts agree.

Done here rather than in the browser: decimals stay exact, and a page reads without scripts.
Of d3's grammar: `[+][$][,][.digits][~][f|d|%|s]`; for dates the strftime directives.
"""

import re
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

_NUMBER = re.compile(
    r"(?P<plus>\+)?(?P<currency>\$)?(?P<comma>,)?(?:\.(?P<digits>\d+))?(?P<trim>~)?(?P<type>[fd%s])?"
)
_DIRECTIVE = re.compile(r"%-?[A-Za-z]")
_PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
_MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
"""Stands for null."""


def check_format(text: str) -> str:
    """`text`, if it is a format that `show` understands."""
    if _NUMBER.fullmatch(text) or _DIRECTIVE.search(text):
        return text
    raise ValueError(f"{text!r} is not a format: write for example $,.0f or .1% or %d %b %Y")


def show(value: Any, form: str | None = None) -> str:
    """A value as a reader sees it. A number ignores a date's format and the other way around."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case date() | datetime():
            return _date(value, form)
        case int() | float() | Decimal():
            # 15 digits are what a double holds; a decimal of 38 digits must not lose its last ones.
            with localcontext(prec=60, rounding=ROUND_HALF_UP):
                number = f"{value:.15g}" if isinstance(value, float) else value
                return _number(Decimal(number), form)
    return str(value)


def _date(value: date, form: str | None) -> str:
    if form is None or not _DIRECTIVE.search(form):
        form = "%-d %b %Y %H:%M" if isinstance(value, datetime) else "%-d %b %Y"
    # %-d (no leading zero) is not known to every platform's strftime.
    return value.strftime(form.replace("%-d", str(value.day)))


def _number(value: Decimal, form: str | None) -> str:
    if not value.is_finite():
        return NOTHING
    match = _NUMBER.fullmatch(form or "") or _NUMBER.fullmatch("")
    assert match is not None
    digits = int(match["digits"]) if match["digits"] else None
    size, suffix = abs(value), ""
    if match["type"] == "%":
        size, suffix, digits = size * 100, "%", 0 if digits is None else digits
    elif match["type"] == "s":
        size, suffix, digits = _scaled(size, 6 if digits is None else digits)
    elif match["type"] == "d":
        digits = 0
    if digits is not None:
        # Half away from zero, as readers expect and d3 does.
        size = size.quantize(Decimal(1).scaleb(-digits))
    comma = "," if match["comma"] or not form else ""
    text = f"{size:{comma}f}"
    if match["trim"] and "." in text:
        text = text.rstrip("0").rstrip(".")
    sign = "" if size == 0 else _MINUS if value < 0 else match["plus"] or ""
    return f"{sign}{match['currency'] or ''}{text}{suffix}"


def _scaled(size: Decimal, significant: int) -> tuple[Decimal, str, int]:
    """A number below 1,000, its SI prefix, and the digits after the point that it deserves."""
    if not size:
        return size, "", max(significant - 1, 0)
    with localcontext(prec=max(significant, 1)):
        size = +size
    step = max(-3, min(5, size.adjusted() // 3))
    size = size.scaleb(-3 * step)
    return size, _PREFIXES[step], max(significant - 1 - size.adjusted(), 0)
