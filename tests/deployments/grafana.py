"""The dashboard as Grafana would read it."""

from __future__ import annotations

import json
import re

from .promtool import MONITORING

FILE = MONITORING / "dashboards/basaran.json"
DASHBOARD = json.loads(FILE.read_text())
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

CHOICES = {"namespace": ".*", "job": "basaran_ops", "pod": ".*", "model": ".*", "__rate_interval": "5s"}
"""What a viewer chose. The rate's interval suits a Prometheus that scrapes each second."""


def queries(panel: dict) -> list[str]:
    return [filled(target["expr"]) for target in panel["targets"]]


def filled(expression: str) -> str:
    """With the viewer's choices in place of variables; of those not chosen, the default."""

    def choice(match: re.Match[str]) -> str:
        return CHOICES.get(match[1]) or VARIABLES[match[1]]["current"]["value"]

    return re.sub(r"\$(\w+)", choice, expression)
