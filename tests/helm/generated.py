"""The chart's files that follow from others. Run as a module it writes them."""

from __future__ import annotations

import functools
import json
import operator
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from basaran_ops.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
MONITORING = ROOT / "deployments/monitoring"
BETWEEN = re.compile(r"(?<=checked by a test -->\n).*?(?=<!-- end of values -->)", re.DOTALL)

COPIES = {
    CHART / "rules/basaran.rules.yml": MONITORING / "rules/basaran.rules.yml",
    CHART / "dashboards/basaran.json": MONITORING / "dashboards/basaran.json",
}
"""Helm reads nothing outside the chart, and links in it do not survive a copy."""


def managed() -> set[str]:
    """Variables that values of their own decide, by the chart's own list."""
    text = (CHART / "templates/_validate.tpl").read_text()
    body = text.partition('define "basaran-ops.managed"')[2]
    return set(re.findall(r"^[A-Z_]+$", body, re.MULTILINE))


def schema() -> str:
    """values.schema.json, with the settings that the server has and no value of its own decides.

    And with all that must be there: Helm drops what is set to null before it asks the schema.
    """
    values = json.loads((CHART / "values.schema.json").read_text())
    fields = Settings.model_json_schema()["properties"]
    values["properties"]["settings"]["properties"] = {
        name.upper(): field(described) for name, described in fields.items() if name.upper() not in managed()
    }
    require(values, yaml.safe_load((CHART / "values.yaml").read_text()), values["definitions"])
    return json.dumps(values, indent=2) + "\n"


def require(described: dict, defaults: dict, definitions: dict) -> None:
    """Require what has a default and may not be null, in each map that has the chart's keys alone."""
    required = []
    for name, default in defaults.items():
        part = described["properties"][name]
        part = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if not nullable(part):
            required.append(name)
        if isinstance(default, dict) and part.get("additionalProperties") is False:
            require(part, default, definitions)
    described.pop("required", None)
    if required:
        described["required"] = required


def nullable(described: dict) -> bool:
    return "null" in described.get("type", ()) or None in described.get("enum", ())


def field(described: dict) -> dict:
    """A setting's type and bounds, in the words of draft 7."""
    kept = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    variants = described.get("anyOf", [described])
    (kind,) = [variant for variant in variants if variant.get("type") != "null"]
    return {name: kind[name] for name in kept if name in kind} | {"description": described["description"]}


def comments() -> Iterator[tuple[str, str]]:
    """Each key of values.yaml by its path, and the comment above it. Empty where there is none."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := re.match(r"( *)# (.*)", line):
            comment.append(match[2])
        elif match := re.match(r"( *)([\w-]+):(?: |$)", line):
            del path[len(match[1]) // 2 :]
            path.append(match[2])
            yield ".".join(path), " ".join(comment)
            comment = []
        else:
            comment = []


def table() -> str:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    for path, comment in comments():
        if comment:
            text = json.dumps(functools.reduce(operator.getitem, path.split("."), values))
            default = "" if text in ('""', "null", "[]", "{}") else f"`{text}`"
            rows.append(f"| `{path}` | {default} | {comment} |")
    return "\n".join(rows) + "\n"


def readme() -> str:
    return BETWEEN.sub(lambda _: table(), (CHART / "README.md").read_text())


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(schema())
    (CHART / "README.md").write_text(readme())
    for copy, original in COPIES.items():
        shutil.copyfile(original, copy)
