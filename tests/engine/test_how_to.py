"""The how-to pages do what they say: their files are written and their commands run, in order."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engine.conftest import ROOT, run

BLOCK = re.compile(
    r"(?:^`(?P<path>[\w/.]+)`\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("start-a-project", "shop/lake/marts/fct_baskets"),
        ("add-a-source", "lake/raw_weather/measurements"),
        ("run-loads", "load.yml"),
        ("catalogue-media", "lake/quarantine_photos/files"),
        ("read-another-lake", "lake/raw_partner/stock"),
        ("read-pubsub", "lake/quarantine_guests/sign_ins"),
        ("read-a-share", "lake/raw_panel/household_demographics"),
        ("read-kinesis", "lake/quarantine_till_payments/payments"),
        ("read-mqtt", "lake/raw_fleet/positions"),
        ("receive-webhooks", "lake/quarantine_shop/orders"),
        ("load-an-api", "lake/raw_social/hashtags"),
        ("load-a-database", "lake/raw_shop/orders"),
        ("live-with-drift", "lake/quarantine_meters/readings"),
        ("add-a-model", "lake/marts/fct_store_days"),
        ("raise-alerts", "lake/tarn/alerts"),
        ("add-an-output", "site/dashboards/stores.html"),
        ("watch-live", ".tarn/live/manifest.json"),
        ("read-a-failing-test", "target/run_results.json"),
        ("follow-a-stream", "lake/quarantine_web/deliveries"),
        ("keep-storage-small", "lake/_tarn/releases/00000002.json"),
    ],
)
def test_a_page_can_be_followed_to_its_end(
    own_project: Path, project_env: Mapping[str, str], page: str, made: str
) -> None:
    commands = 0
    for block in BLOCK.finditer((ROOT / f"docs/how-to/{page}.md").read_text()):
        if block["path"]:
            (own_project / block["path"]).write_text(block["text"])
        elif block["language"] == "shell":
            done = run(own_project, project_env, "sh", "-ec", block["text"])
            assert done.returncode == 0, f"{block['text']}\n{done.stdout}\n{done.stderr}"
            assert "WARN" not in done.stdout.replace("WARN=0", "")
            commands += 1
    assert commands
    assert (own_project / made).exists()
