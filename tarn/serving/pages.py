"""The pages' looks: templates, stylesheet and theme, and the data of each page put into them."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline';"
    " img-src data:"
)
"""What a page may load: itself. Vega builds its expressions with eval."""


def render(template: str, **values: Any) -> str:
    """A page from its template; every value is escaped on its way in."""
    return _environment().get_template(template).render(values)


@cache
def themes() -> Mapping[str, Any]:
    """Vega's config in light and in dark."""
    theme = _theme()
    return {
        name: _filled(theme["vega"], {**colours, "font": theme["font"]})
        for name, colours in theme["colours"].items()
    }


@cache
def library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, which holds no end of a script element."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in script.lower()
    return Markup(script)


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no character of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tarn.serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = script_json
    theme = _theme()
    style = environment.get_template("style.css").render(
        {name: Markup(_properties(colours)) for name, colours in theme["colours"].items()},
        font=Markup(theme["font"]),
    )
    environment.globals.update(language="en", policy=POLICY, style=Markup(style))
    return environment


@cache
def _theme() -> Mapping[str, Any]:
    text = files("tarn.serving").joinpath("theme.yml").read_text(encoding="utf-8")
    theme: Mapping[str, Any] = yaml.safe_load(text)
    return theme


def _properties(colours: Mapping[str, Any]) -> str:
    """Colours as CSS custom properties; those of a list are numbered."""
    named: dict[str, str] = {}
    for name, value in colours.items():
        several = [value] if isinstance(value, str) else value
        named |= {f"{name}-{i}" if several is value else name: c for i, c in enumerate(several)}
    return " ".join(f"--{name}: {value};" for name, value in named.items())


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    """`node` with each text `$name` replaced by that value."""
    if isinstance(node, Mapping):
        return {key: _filled(child, values) for key, child in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_filled(child, values) for child in node]
    return values[node[1:]] if isinstance(node, str) and node.startswith("$") else node
