"""What went wrong in talking to a server, in words."""

from urllib.parse import urlsplit

from requests.exceptions import HTTPError, RequestException  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.masking import causes

_FIXES = {
    401: "check the token or password",
    403: "ask the owner for access",
    404: "check the path",
    429: "load less often, or ask the owner for more requests",
}


def http_failure(failure: BaseException, where: str) -> TarnError | None:
    """The failed request among an error's causes, told; None if no request is."""
    error = next((each for each in causes(failure) if isinstance(each, RequestException)), None)
    if error is None:
        return None
    address = _address(error)
    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
        answer = " ".join(error.response.text.split())[:200]
        what = f"{address} answered {code}: {answer}"
        return TarnError(what, where, _FIXES.get(code, "try again later, or ask the owner"))
    what = f"cannot reach {address}: {_reason(error)}"
    return TarnError(what, where, "check that the server runs and the address is right")


def _address(error: RequestException) -> str:
    """Without parameters, which may hold keys."""
    parts = urlsplit(error.request.url if error.request is not None else "")
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _reason(error: RequestException) -> str:
    *_, root = causes(error)
    return str(root) or type(root).__name__
