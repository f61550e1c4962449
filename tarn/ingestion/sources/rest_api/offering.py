"""What the declaration of an API's endpoint is likely to be: from an OpenAPI document what can be
asked, from a first page what comes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import combinations
from typing import Any

from dlt.sources.helpers.rest_client.paginators import (
    HeaderLinkPaginator,
    JSONLinkPaginator,
    JSONResponseCursorPaginator,
    PageNumberPaginator,
)

from tarn.ingestion.names import snake_case
from tarn.ingestion.sources import Offered
from tarn.ingestion.sources.rest_api.pages import Page

_SINCE = re.compile(
    r"(updated|modified|changed|created)?_?(since|after|from|gte?)(_(date|time))?|since|start_date"
)
_MARK = re.compile(r"(page_?)?(cursor|token)|starting_after|after|continuation(_token)?")
_CHANGED = re.compile(r"(last_)?(updated|modified|changed)(_(at|on|time|date))?")
_HAPPENED = re.compile(r"(created|occurred|happened|recorded)(_(at|on|time))?|timestamp|at|time")
_TOTAL = re.compile(r"total(_(count|results|rows|items|records))?|count")
_LIMIT = 100


def operations(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The documented paths that can be listed as they are, with what GET says of each."""
    found: dict[str, Mapping[str, Any]] = {}
    for path, methods in document["paths"].items():
        operation = methods.get("get") if isinstance(methods, dict) else None
        if operation is not None and "{" not in path and not _needs_more(operation):
            found[path] = {**operation, "parameters": [*_parameters(document, operation)]}
    return found


def table_name(path: str) -> str:
    name = snake_case(path.split("?")[0].strip("/").rpartition("/")[2])
    return name.strip("_") if re.match(r"_*[a-z]", name) else f"t_{name.strip('_')}"


def key_matches(key: str, column: str) -> bool:
    """Whether a key of an object becomes the column."""
    return snake_case(key) == column


def unread(name: str, path: str, why: str) -> Offered:
    """An endpoint that could not be tried."""
    spec = {"write": "replace", "endpoint": {"path": path}}
    return Offered(name, spec, {}, f"not read: {why}")


def suggested(name: str, path: str, operation: Mapping[str, Any], page: Page | None) -> Offered:
    """An endpoint as its first page and its documentation show it."""
    rows = [flat(row) for row in (page.rows if page else ()) if isinstance(row, dict)]
    columns = {column: _type([row.get(column) for row in rows]) for column in _names(rows)}
    key, cursor = _key(name, rows), _cursor(columns)
    parameters = {each["name"]: each.get("schema", {}) for each in operation.get("parameters", ())}
    endpoint: dict[str, Any] = {"path": path}
    if page:
        endpoint |= {"data_selector": page.selector, "paginator": _paginator(page, parameters)}
    since = next((each for each in parameters if _SINCE.fullmatch(snake_case(each))), None)
    if cursor and since:
        endpoint["incremental"] = {"start_param": since}
    spec: dict[str, Any] = {"write": "merge" if key else "replace"}
    if key:
        spec["primary_key"] = list(key)
        spec |= {"cursor": cursor} if cursor else {}
    typed = {column: kind for column, kind in columns.items() if kind in ("timestamp", "date")}
    spec |= {"columns": typed} if typed else {}
    if not key:
        endpoint.pop("incremental", None)
    told = str(operation.get("summary") or operation.get("description") or "").strip()
    return Offered(name, {**spec, "endpoint": endpoint}, columns, told)


def flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The row by column: objects in it become columns, lists become tables of their own."""
    columns: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{above}{snake_case(key)}"
        if isinstance(value, dict):
            columns |= flat(value, f"{name}__")
        elif not isinstance(value, list):
            columns[name] = value
    return columns


def _needs_more(operation: Mapping[str, Any]) -> bool:
    """Whether a parameter must be given that only the user can know."""
    given = operation.get("parameters", ())
    return any(each.get("required") and each.get("in") in ("path", "query") for each in given)


def _parameters(
    document: Mapping[str, Any], operation: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    for parameter in operation.get("parameters", ()):
        if reference := parameter.get("$ref"):
            parameter = document
            for step in reference.lstrip("#/").split("/"):
                parameter = parameter.get(step, {})
        if parameter.get("in") == "query" and "name" in parameter:
            yield parameter


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _type(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "bigint"
    if kinds and kinds <= {int, float}:
        return "double"
    if kinds == {str} and all(_is_day(value) for value in known):
        return "date"
    return "timestamp" if kinds == {str} and all(_is_moment(value) for value in known) else "text"


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text) and date.fromisoformat(text))
    except ValueError:
        return False


def _is_moment(text: str) -> bool:
    try:
        return bool(re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:", text) and datetime.fromisoformat(text))
    except ValueError:
        return False


def _key(table: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns that look like a key, and are one on the page."""
    one = table[:-1] if table.endswith("s") else table
    names = _names(rows)
    likely = ["id", f"{one}_id", "uuid", "key", f"{one}_key", "code"]
    likely += [name for name in names if name.endswith(("_id", "_key", "_code", "_number"))]
    found = [name for name in dict.fromkeys(likely) if name in names]
    for keys in (*combinations(found, 1), *combinations(found, 2)):
        values = [tuple(row.get(key) for key in keys) for row in rows]
        if len(set(values)) == len(values) and not any(None in each for each in values):
            return keys
    return ()


def _cursor(columns: Mapping[str, str]) -> str | None:
    """The column that grows with each change."""
    moments = [name for name, kind in columns.items() if kind == "timestamp"]
    changed = [name for name in moments if _CHANGED.fullmatch(name)]
    return next(iter([*changed, *(name for name in moments if _HAPPENED.fullmatch(name))]), None)


def _paginator(page: Page, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As the first answer tells, else as the documented parameters do."""
    found = page.paginator
    if isinstance(found, JSONLinkPaginator):
        return {"type": "json_link", "next_url_path": str(found.next_url_path)}
    if isinstance(found, HeaderLinkPaginator):
        return {"type": "header_link"}
    if isinstance(found, JSONResponseCursorPaginator):
        mark = next((name for name in parameters if _MARK.fullmatch(snake_case(name))), "cursor")
        return {"type": "cursor", "cursor_path": str(found.cursor_path), "cursor_param": mark}
    if isinstance(found, PageNumberPaginator):
        base = {"base_page": found.base_index, "total_path": str(found.total_path)}
        return {"type": "page_number", **base}
    return _documented(page, parameters)


def _documented(page: Page, parameters: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {snake_case(name): name for name in parameters}
    offset = by_name.get("offset") or by_name.get("skip") or by_name.get("start")
    size = next(
        (by_name[name] for name in ("limit", "page_size", "per_page") if name in by_name), None
    )
    if offset and size:
        total = {"total_path": path} if (path := _total(page.answer)) else {}
        limit = parameters[size].get("maximum") or parameters[size].get("default") or _LIMIT
        return {
            "type": "offset",
            "limit": limit,
            "offset_param": offset,
            "limit_param": size,
            **total,
        }
    if number := by_name.get("page") or by_name.get("page_number"):
        schema = parameters[number]
        first = schema.get("minimum", schema.get("default", 1))
        return {"type": "page_number", "base_page": first, "page_param": number}
    return {"type": "single_page"}


def _total(answer: Any, above: str = "") -> str | None:
    """JSONPath to the number of all rows."""
    for key, value in answer.items() if isinstance(answer, dict) else ():
        if isinstance(value, int) and _TOTAL.fullmatch(snake_case(key)):
            return f"{above}{key}"
        if isinstance(value, dict) and (inside := _total(value, f"{above}{key}.")):
            return inside
    return None
