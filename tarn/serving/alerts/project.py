"""The alerts that a project declares, as it is now."""

import json
import re
from collections.abc import Mapping, Sequence

import yaml

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import END, START, Alert, label
from tarn.serving.alerts.delivery import Open, opened
from tarn.serving.alerts.findings import Declared
from tarn.serving.alerts.measuring import grain
from tarn.serving.declarations import Exposure, read_exposures
from tarn.serving.metrics import MetricCompiler, Query
from tarn.serving.project import parsed
from tarn.settings import Settings
from tarn.strict_yaml import nearest

_ALERT = re.compile(r"kind:\s*[\"']?alert\b")


def declared(home: Settings) -> list[Declared]:
    """All alerts by name, their metrics compiled. dbt reads the project for it, in seconds."""
    if not _are_any(home):
        return []
    target = parsed(home, "alerts")
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    metrics = MetricCompiler(target / "semantic_manifest.json")
    exposures = read_exposures(manifest, home.project_dir)
    return [_declared(each, metrics) for each in exposures if isinstance(each.run, Alert)]


def one(alerts: Sequence[Declared], name: str) -> Declared:
    """The alert of that name."""
    found = next((each for each in alerts if each.name == name), None)
    if found is None:
        raise TarnError(f"no alert {name!r}{nearest(name, [each.name for each in alerts])}")
    return found


def channels(home: Settings, alerts: Sequence[Declared]) -> Mapping[str, Sequence[Open]]:
    """By alert, what it is sent to. Raises TarnError for a variable that is not set."""
    return {each.name: _channels(home, each) for each in alerts}


def _channels(home: Settings, declared: Declared) -> Sequence[Open]:
    found = (
        opened(channel, label(channel), lambda text: home.expand(text, declared.where))
        for channel in declared.alert.notify
    )
    return [each for each in found if each is not None]


def _declared(exposure: Exposure, metrics: MetricCompiler) -> Declared:
    assert isinstance(exposure.run, Alert)
    where = f"{exposure.file}: {exposure.name}"
    return Declared(exposure.name, exposure.run, _sql(exposure.run, metrics, where), where)


def _sql(alert: Alert, metrics: MetricCompiler, where: str) -> str:
    if alert.sql is not None:
        return alert.sql
    assert alert.metric is not None
    time = f"{{{{ TimeDimension('metric_time', '{grain(alert)}') }}}}"
    within = (f"{time} >= ${START}", f"{time} < ${END}")
    try:
        return metrics.sql(Query(alert.metric, where=within))
    except TarnError as error:
        raise TarnError(error.what, where, error.fix) from None


def _are_any(home: Settings) -> bool:
    """Whether a file of the models speaks of an alert; if none does, dbt need not be started."""
    project = yaml.safe_load((home.project_dir / "dbt_project.yml").read_text()) or {}
    folders = [home.project_dir / each for each in project.get("model-paths", ["models"])]
    files = (file for folder in folders for file in folder.rglob("*.y*ml"))
    return any(_ALERT.search(file.read_text(encoding="utf-8")) for file in files)
