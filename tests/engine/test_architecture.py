"""Every arrow of the design points one way, with no exceptions kept."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engine.conftest import ROOT

FOUNDATIONS = {"errors", "settings"}
TOOLS = {"progress", "strict_yaml"}
MAY_IMPORT = {
    "errors": set[str](),
    "settings": {"errors"},
    "progress": set[str](),
    "strict_yaml": {"errors"},
    "storage": FOUNDATIONS | {"strict_yaml"},
    "ingestion": FOUNDATIONS | TOOLS | {"storage"},
    "dbt": FOUNDATIONS | TOOLS | {"storage"},
    "serving": FOUNDATIONS | TOOLS | {"storage"},
    # Writes declarations, and dbt's files as text: it asks sources what they have.
    "scaffold": FOUNDATIONS | TOOLS | {"storage", "ingestion"},
    "cli": FOUNDATIONS | TOOLS | {"storage", "ingestion", "dbt", "serving", "scaffold"},
}
"""Rooms of the engine, and the rooms each may import."""
MAY_READ = {
    "staging": {"source"},
    "snapshots": {"staging"},
    "intermediate": {"staging", "snapshots", "seeds", "intermediate"},
    "marts": {"staging", "snapshots", "seeds", "intermediate", "marts"},
    "outputs": {"marts"},
}
"""Layers of the project, and the layers each may read."""


def imports(file: Path) -> Iterator[str]:
    """Modules a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The engine's room that a module is in; None if it is not of the engine."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tarn" and len(parts) > 1 else None


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", python_files("tarn"), ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms_import_only_what_is_below_them(file: Path) -> None:
    parts = file.relative_to(ROOT / "tarn").with_suffix("").parts
    here = parts[0]
    if here == "__init__":
        return
    imported = {room(module) for module in imports(file)} - {None, here}
    assert imported <= MAY_IMPORT[here]
    assert not [module for module in imports(file) if module.split(".")[0] in ("demo", "tests")]


@pytest.mark.parametrize("file", python_files("demo"), ids=lambda f: str(f.relative_to(ROOT)))
def test_the_demo_is_upstream_of_us(file: Path) -> None:
    assert not [module for module in imports(file) if module.split(".")[0] == "tarn"]


@pytest.mark.parametrize("file", python_files("tarn"), ids=lambda f: str(f.relative_to(ROOT)))
def test_only_settings_reads_the_environment(file: Path) -> None:
    reads = re.findall(r"os\.(environ|getenv)", file.read_text())
    assert not reads or file.name == "settings.py"


def test_the_engine_knows_no_business() -> None:
    declared = [yaml.safe_load(file.read_text()) for file in (ROOT / "ingestion").glob("*.yml")]
    words = {table for system in declared for table in system["tables"]}
    words |= {word.removesuffix("s") for word in words} - {"store"}
    # Also verbs, arithmetic, SQL, a library, and how far a stream has been read.
    words -= {"stores", "products", "leads", "lead", "order", "orders", "click"}
    words -= {"position", "positions"}
    words |= {path.stem for path in (ROOT / "models").rglob("*.sql")}
    pattern = re.compile(rf"\b({'|'.join(sorted(words))})\b", re.I)
    found = {
        str(file.relative_to(ROOT)): hits
        for file in (ROOT / "tarn").rglob("*")
        if file.suffix in {".py", ".sql", ".yml", ".j2", ".js", ".css"}
        and (hits := pattern.findall(file.read_text()))
    }
    assert found == {}


@pytest.fixture(scope="module")
def manifest(built_project: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((built_project / "target/manifest.json").read_text())
    return content


def layer(node: dict[str, Any]) -> str:
    kinds = {"source": "source", "snapshot": "snapshots", "seed": "seeds"}
    return kinds.get(node["resource_type"]) or str(node["fqn"][1])


def test_layers_read_only_what_is_below_them(manifest: dict[str, Any]) -> None:
    nodes = {**manifest["nodes"], **manifest["sources"]}
    wrong = [
        f"{node['name']} reads {nodes[parent]['name']}"
        for node in manifest["nodes"].values()
        if node["resource_type"] in ("model", "snapshot")
        for parent in node["depends_on"]["nodes"]
        if layer(nodes[parent]) not in MAY_READ[layer(node)]
    ]
    assert wrong == []


def test_every_source_table_has_one_staging_view(manifest: dict[str, Any]) -> None:
    read = [
        parent
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and layer(node) == "staging"
        for parent in node["depends_on"]["nodes"]
    ]
    assert sorted(read) == sorted(manifest["sources"])


def test_every_source_is_loaded_by_a_declaration(manifest: dict[str, Any]) -> None:
    declared = {
        system["system"]: set(system["tables"])
        for file in (ROOT / "ingestion").glob("*.yml")
        for system in [yaml.safe_load(file.read_text())]
    }
    for source in manifest["sources"].values():
        assert source["schema"] == f"raw_{source['source_name']}"
        assert source["name"].partition("__")[0] in declared[source["source_name"]]


def test_every_output_has_an_exposure(manifest: dict[str, Any]) -> None:
    exposed = {
        node
        for exposure in manifest["exposures"].values()
        for node in exposure["depends_on"]["nodes"]
    }
    outputs = {
        node["unique_id"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and layer(node) == "outputs"
    }
    assert outputs - exposed == set()
