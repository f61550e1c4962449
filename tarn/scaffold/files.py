"""Files that are written for a user: made from templates, and never over what is there."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tarn.errors import TarnError

_LISTED = 5
_CODE = re.compile(r"\{(?=[{%#])")
_LINE = 88


def render(template: str, **values: Any) -> str:
    return _templates().get_template(f"{template}.j2").render(**values)


def write(project: Path, files: Mapping[str, str], force: bool = False) -> None:
    """Write files by their path in the project; raises TarnError before the first if one of them
    is there already."""
    there = [name for name in files if (project / name).exists()]
    if there and not force:
        more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
        raise TarnError(
            f"there already: {', '.join(there[:_LISTED])}{more}",
            fix="nothing was written; --force writes over them",
        )
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def said(text: str) -> str:
    """Another system's words as a description: one line in which nobody sees code or variables."""
    return _CODE.sub("{ ", " ".join(text.split())).replace("${", "$ {")


@cache
def _templates() -> Environment:
    """dbt's own Jinja stays as it is: ours is in << >> and <% %>."""
    made = Environment(
        loader=PackageLoader("tarn.scaffold"),
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    made.filters |= {"yaml": _yaml, "comment": _comment}
    return made


class _Dumper(yaml.SafeDumper):
    """Takes any kind of text, such as the names SQLAlchemy gives."""


_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))


def _yaml(value: Any) -> str:
    """A value in YAML, on one line; quotes are double."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    if text.startswith("'"):
        return json.dumps(value, ensure_ascii=False)
    return text.strip().removesuffix("...").strip()


def _comment(text: str, mark: str) -> str:
    return fill(text, _LINE, initial_indent=mark, subsequent_indent=mark, break_long_words=False)
