"""The dashboard is whole, is what its script writes, and asks for what there is."""

from __future__ import annotations

import itertools
import json
import re
import runpy

import pytest

from .expressions import faults
from .grafana import DASHBOARD, FILE, PANELS, ROWS, VARIABLES, filled, queries
from .metric_families import SERIES
from .promtool import MONITORING

panels = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(MONITORING / "dashboard.py"))
    assert FILE.read_text() == script["text"](), "run deployments/monitoring/dashboard.py"


def test_it_keeps_its_address_and_is_of_the_current_schema() -> None:
    assert DASHBOARD["uid"] == "basaran-ops"
    assert DASHBOARD["schemaVersion"] == 42
    assert "id" not in DASHBOARD, "Grafana gives it one"


@panels
def test_a_panel_has_a_title_a_description_a_unit_and_a_query(panel: dict) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"] == panel["fieldConfig"]["defaults"]["unit"]


@panels
def test_lines_of_a_panel_can_be_told_apart(panel: dict) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    assert len({target["refId"] for target in panel["targets"]}) == len(legends)


@panels
def test_a_query_reads_only_metrics_and_labels_that_there_are(panel: dict) -> None:
    for query in queries(panel):
        assert faults(query) == []


@panels
def test_rates_are_of_now_and_fit_the_scrape_interval(panel: dict) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"\[(.+?)\]", target["expr"])) <= {"$__rate_interval"}
        for name in re.findall(r"\bbasaran_\w+_(?:total|bucket|sum|count)\b", target["expr"]):
            assert re.search(rf"(?:rate|increase)\({name}\b", target["expr"]), f"{name} since the start"


@panels
def test_every_selector_follows_the_viewers_choices(panel: dict) -> None:
    for target in panel["targets"]:
        for name, matchers in re.findall(r"\b(\w+)\{(.*?)\}", target["expr"]):
            wanted = {'namespace=~"$namespace"', 'job=~"$job"', 'pod=~"$pod"'}
            if "model_name" in SERIES[name]:
                wanted |= {'model_name=~"$model"'}
            assert wanted <= set(matchers.split(",")), name


def test_the_alerts_it_marks_are_ours() -> None:
    (alerts,) = DASHBOARD["annotations"]["list"]
    assert faults(filled(alerts["expr"])) == []


def test_there_are_the_variables_that_operators_need() -> None:
    assert list(VARIABLES) == [
        *("datasource", "namespace", "job", "model", "pod"),
        *("slo_first_token", "slo_token"),
    ]


def test_every_variable_is_used_and_no_other() -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == VARIABLES.keys()


@pytest.mark.parametrize("name", ["namespace", "job", "model", "pod"])
def test_a_variable_offers_values_of_a_label_that_there_is(name: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert match is not None
    selector, label = filled(match[1]), match[2]
    assert faults(f"count by ({label}) ({selector})") == []


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("slo_first_token", "basaran_time_to_first_token_seconds_bucket"),
        ("slo_token", "basaran_request_time_per_output_token_seconds_bucket"),
    ],
)
def test_objectives_on_offer_are_bounds_of_buckets(name: str, metric: str) -> None:
    offered = [option["value"] for option in VARIABLES[name]["options"]]
    assert VARIABLES[name]["current"]["value"] in offered
    assert set(offered) <= set(SERIES[metric]["le"])


def test_no_datasource_is_written_down() -> None:
    found = re.findall(r'"uid": "([^"]*)"', json.dumps({**DASHBOARD, "uid": ""}))
    assert set(found) == {"${datasource}", ""}
    for panel in PANELS:
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}


def test_numbers_and_titles_are_unique() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_two_panels_overlap_and_all_are_within_the_page() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_each_row_has_panels() -> None:
    starts = [row["gridPos"]["y"] for row in ROWS]
    for start, end in itertools.pairwise([*starts, float("inf")]):
        assert any(start < panel["gridPos"]["y"] < end for panel in PANELS)
