"""Keeps passwords and tokens out of messages, and messages short."""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, unquote

from tarn.errors import TarnError

MASK = "***"
_IN_ADDRESS = re.compile(r"(?<=://)([^/\s:@]*):([^/\s]+)@")
_IN_HEADER = re.compile(
    r"\b(Bearer|Basic|Token)\s+(?=[^\s'\",]{0,99}[\d=_+/~-])[^\s'\",]{8,}", re.IGNORECASE
)
"""A word without digit or sign is one of a sentence: the token expired."""
_SECRET_KEYS = re.compile(r"token|password|passwd|secret|api_?key|authorization", re.IGNORECASE)
_LONGEST = 600


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """The texts in a connection that no message may contain."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from secrets_in(each, str(name))
    elif isinstance(value, str) and value:
        if is_secret_key(key):
            yield value
        for match in _IN_ADDRESS.finditer(value):
            yield match[2]


def is_secret_key(key: str) -> bool:
    """Whether what stands under a key is a secret, by the key's name."""
    return bool(_SECRET_KEYS.search(key))


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the secrets, however they are escaped in it."""
    forms = {form for each in secrets for form in (each, quote(each, safe=""), unquote(each))}
    for form in sorted(forms, key=len, reverse=True):
        # A shorter one would blot out half the message; in an address it is masked below.
        text = text.replace(form, MASK) if len(form) > 2 else text
    text = _IN_ADDRESS.sub(rf"\1:{MASK}@", text)
    return _IN_HEADER.sub(rf"\1 {MASK}", text)


def message(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """What a user is told of a failure: ours if one is in its causes, else its root, briefly."""
    text = str(_telling(error)).strip() or type(error).__name__
    text = masked(text, secrets)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _telling(error: BaseException) -> BaseException:
    root = error
    for cause in causes(error):
        root = cause
        if isinstance(cause, TarnError):
            break
    return root


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
