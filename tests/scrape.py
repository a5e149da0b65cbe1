"""What the management port tells, read as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .running_server import RunningServer


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    @classmethod
    def of(cls, server: RunningServer) -> Scrape:
        response = httpx.get(f"{server.management_url}/metrics", timeout=30)
        response.raise_for_status()
        return cls(response.text)

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series of a family, a suffix included, that have these labels."""
        found = [s.value for s in self._samples if s.name == f"basaran_{name}" and _has(s.labels, labels)]
        assert found, f"no series of {name} with {labels}"
        return sum(found)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values above 0 by one label."""
        values: dict[str, float] = {}
        for sample in self._samples:
            if sample.name == f"basaran_{name}" and sample.value:
                key = sample.labels[label]
                values[key] = values.get(key, 0) + sample.value
        return values


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())
