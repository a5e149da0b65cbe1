#!/usr/bin/env python3
"""Writes dashboards/basaran.json, the Grafana dashboard: run this after changing anything here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Panel = dict[str, Any]

FILE = Path(__file__).parent / "dashboards/basaran.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

POD = 'namespace=~"$namespace",job=~"$job",pod=~"$pod"'
MODEL = f'{POD},model_name=~"$model"'

# Bounds of the histograms' buckets, as they stand in the label le.
FIRST_TOKEN_BOUNDS = ("0.25", "0.5", "1.0", "2.5", "5.0", "10.0")
TOKEN_BOUNDS = ("0.025", "0.05", "0.1", "0.2", "0.3", "0.5")

TOKENS = "suffix: tokens"
TOKENS_PER_SECOND = "suffix: tokens/s"
SEQUENCES = "suffix: sequences"

STATES = {
    0: ("unreachable", "dark-red"),
    1: ("loading", "blue"),
    2: ("ready", "green"),
    3: ("draining", "yellow"),
    4: ("failed", "red"),
}


# Expressions. All rates are over $__rate_interval, so that they tell of now and not of all time.


def rate(metric: str, by: str = "", selector: str = MODEL) -> str:
    """The sum of a counter's rates."""
    return f"sum {f'by ({by}) ' if by else ''}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    """What so large a share stays below."""
    return f"histogram_quantile({share}, {rate(f'basaran_{histogram}_bucket', 'le')})"


def within(bound: str, histogram: str) -> str:
    """The share of requests up to a bound."""
    good = rate(f"basaran_{histogram}_bucket", selector=f'{MODEL},le="{bound}"')
    return f"{good} / ({rate(f'basaran_{histogram}_count')} > 0)"


def state() -> str:
    """A number per pod: the key of STATES."""
    numbers = [f"(up{{{POD}}} == 0) * 0"]
    for number, (name, _) in STATES.items():
        if number:
            numbers.append(f'(basaran_engine_state{{{MODEL},state="{name}"}} == 1) * {number}')
    return f"max by (pod) ({' or '.join(numbers)})"


# Panels


def query(expression: str, legend: str = "", **options: Any) -> Panel:
    """One of a panel's queries."""
    return {"expr": expression, "legendFormat": legend, "range": True, "instant": False, **options}


def panel(kind: str, title: str, description: str, unit: str, queries: list[Panel], **rest: Any) -> Panel:
    """What all kinds of panels have, and the rest."""
    targets = [
        {"refId": chr(ord("A") + number), "datasource": DATASOURCE, **target}
        for number, target in enumerate(queries)
    ]
    defaults = {"unit": unit, **rest.pop("defaults", {})}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        **rest,
    }


def lines(title: str, description: str, unit: str, *queries: Panel, **custom: Any) -> Panel:
    """Lines over time."""
    return panel(
        "timeseries",
        title,
        description,
        unit,
        list(queries),
        defaults={
            "min": 0,
            "custom": {
                "lineWidth": 1,
                "fillOpacity": 10,
                "showPoints": "never",
                "spanNulls": False,
                **custom,
            },
        },
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def stacked(title: str, description: str, unit: str, *queries: Panel) -> Panel:
    """Parts of a whole over time."""
    return lines(
        title, description, unit, *queries, stacking={"mode": "normal", "group": "A"}, fillOpacity=60
    )


def percentiles(title: str, description: str, unit: str, histogram: str) -> Panel:
    """The median and the two that hurt."""
    return lines(
        title,
        description,
        unit,
        *(query(quantile(share, histogram), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
    )


def heatmap(title: str, description: str, unit: str, histogram: str) -> Panel:
    """All observations, by bucket."""
    increase = f"sum by (le) (increase(basaran_{histogram}_bucket{{{MODEL}}}[$__rate_interval]))"
    return panel(
        "heatmap",
        title,
        description,
        unit,
        [query(increase, "{{le}}", format="heatmap")],
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "unit": unit},
        },
    )


def tile(title: str, description: str, unit: str, *queries: Panel, limits: tuple[float, ...] = ()) -> Panel:
    """A number; green, from the first limit on yellow, from the second on red."""
    colours = ("green", "yellow", "red") if len(limits) == 2 else ("green", "red")
    steps = [
        {"color": colour, "value": value} for colour, value in zip(colours, (None, *limits), strict=False)
    ]
    return panel(
        "stat",
        title,
        description,
        unit,
        list(queries),
        defaults={"noValue": "none", "thresholds": {"mode": "absolute", "steps": steps}},
        options={
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
            "wideLayout": True,
        },
    )


def tiles() -> Iterator[Panel]:
    """Whether all is well."""
    failed = rate("basaran_requests_total", selector=f'{MODEL},finished_reason=~"error|timeout"')
    yield tile(
        "Requests",
        "Requests that ended, however they did, per second.",
        "reqps",
        query(rate("basaran_requests_total")),
    )
    yield tile(
        "Tokens in and out",
        "Tokens of prompts read and tokens generated, per second.",
        TOKENS_PER_SECOND,
        query(rate("basaran_prompt_tokens_total"), "in"),
        query(rate("basaran_generation_tokens_total"), "out"),
    )
    yield tile(
        "Error ratio",
        "The share of requests that ended with an error or a timeout, streams that broke included. "
        "Alerts: 5 % for ten minutes, 20 % for five.",
        "percentunit",
        query(f"{failed} / ({rate('basaran_requests_total')} > 0)"),
        limits=(0.05, 0.2),
    )
    for title, description, histogram in (
        (
            "p95 first token",
            "95 % of requests got their first token within this time.",
            "time_to_first_token",
        ),
        (
            "p95 between tokens",
            "95 % of tokens came within this time after the one before.",
            "inter_token_latency",
        ),
        ("p95 whole request", "95 % of requests were over within this time.", "e2e_request_latency"),
    ):
        yield tile(title, description, "s", query(quantile(0.95, f"{histogram}_seconds")))
    yield tile(
        "Unreachable",
        "Servers whose management port does not answer Prometheus.",
        "short",
        query(f"sum(up{{{POD}}} == bool 0)"),
        limits=(1,),
    )
    yield tile(
        "Ready replicas",
        "Engines that are up, of all engines.",
        "short",
        query(f"sum(basaran_replica_up{{{POD}}})", "ready"),
        query(f"count(basaran_replica_up{{{POD}}})", "of"),
    )


def latency() -> Iterator[Panel]:
    """How long users wait."""
    yield percentiles(
        "Time to first token",
        "From the request's arrival to its first token: waiting, then reading the prompt.",
        "s",
        "time_to_first_token_seconds",
    )
    yield percentiles(
        "Time between tokens",
        "From one token of a stream to the next. A high p99 over a low p50: prompts are read in between.",
        "s",
        "inter_token_latency_seconds",
    )
    yield percentiles(
        "Time per output token",
        "A request's time after its first token, divided by its other tokens: how fast a reader sees it go.",
        "s",
        "request_time_per_output_token_seconds",
    )
    yield percentiles("Whole request", "From arrival to the last token.", "s", "e2e_request_latency_seconds")
    yield heatmap(
        "First tokens, all of them",
        "How many requests got their first token after how long. Two bands are two kinds of requests, which "
        "no percentile shows.",
        "s",
        "time_to_first_token_seconds",
    )
    yield heatmap(
        "Between tokens, all of them",
        "How many tokens came how long after the one before.",
        "s",
        "inter_token_latency_seconds",
    )
    yield heatmap(
        "Whole requests, all of them", "How many requests took how long.", "s", "e2e_request_latency_seconds"
    )
    yield lines(
        "Objectives attained",
        "The share of requests whose first token came within $slo_first_token s, and whose other tokens took "
        "at most $slo_token s each. The alerts hold 2.5 s and 0.2 s to 95 %.",
        "percentunit",
        query(within("$slo_first_token", "time_to_first_token_seconds"), "first token ≤ $slo_first_token s"),
        query(within("$slo_token", "request_time_per_output_token_seconds"), "per token ≤ $slo_token s"),
    )
    yield lines(
        "Where the time goes",
        "p95 of each phase of a request: waiting for a slot, reading the prompt, generating.",
        "s",
        *(
            query(quantile(0.95, f"request_{phase}_time_seconds"), phase)
            for phase in ("queue", "prefill", "decode")
        ),
    )


def load() -> Iterator[Panel]:
    """How busy the servers are."""
    yield lines(
        "Sequences and slots",
        "Sequences that run and that wait, against the slots for the former. Waiting below full slots means "
        "unbalanced servers or an engine that is down.",
        SEQUENCES,
        query(f"sum(basaran_num_requests_running{{{MODEL}}})", "running"),
        query(f"sum(basaran_num_requests_waiting{{{MODEL}}})", "waiting"),
        query(f"sum(basaran_pool_slots{{{MODEL}}})", "slots"),
    )
    yield lines(
        "Queue",
        "Sequences waiting on each server, against what its queue holds; beyond that, requests get 429.",
        SEQUENCES,
        query(f"sum by (pod) (basaran_num_requests_waiting{{{MODEL}}})", "{{pod}}"),
        query(f"max(basaran_queue_capacity{{{MODEL}}})", "capacity of one"),
    )
    yield percentiles("Time in the queue", "From arrival to a slot.", "s", "request_queue_time_seconds")
    yield percentiles(
        "Batch size",
        "Sequences in one step. Near the slots: the engine is as busy as it can be.",
        SEQUENCES,
        "batch_size",
    )
    yield lines(
        "KV cache in use",
        "Of the room for keys and values, per server. Alert: over 90 % for five minutes.",
        "percentunit",
        query(f"max by (pod) (basaran_kv_cache_usage_perc{{{MODEL}}})", "{{pod}}"),
    )
    hits, queries = rate("basaran_prefix_cache_hits_total"), rate("basaran_prefix_cache_queries_total")
    yield lines(
        "Prefix cache",
        "The share of prompt tokens that an earlier prompt had computed already.",
        "percentunit",
        query(f"{hits} / ({queries} > 0)", "found"),
    )
    accepted, drafted = rate("basaran_accepted_draft_tokens_total"), rate("basaran_draft_tokens_total")
    yield lines(
        "Drafts accepted",
        "The share of the tokens guessed by looking back in the text that the model chose too. "
        "Nothing is guessed while many streams run or none is greedy.",
        "percentunit",
        query(f"{accepted} / ({drafted} > 0)", "accepted"),
    )
    yield lines(
        "Tokens",
        "Tokens read and generated per second, by server.",
        TOKENS_PER_SECOND,
        query(rate("basaran_prompt_tokens_total", "pod"), "{{pod}} in"),
        query(rate("basaran_generation_tokens_total", "pod"), "{{pod}} out"),
    )
    yield lines(
        "Open streams",
        "Streams whose clients are connected, per server.",
        "short",
        query(f"sum by (pod) (basaran_open_streams{{{MODEL}}})", "{{pod}}"),
    )


def outcomes() -> Iterator[Panel]:
    """What became of the requests."""
    yield stacked(
        "How requests ended",
        "Requests per second by the reason for their end. abort: the client left.",
        "reqps",
        query(rate("basaran_requests_total", "finished_reason"), "{{finished_reason}}"),
    )
    yield stacked(
        "Requests by endpoint",
        "Requests per second by what was asked.",
        "reqps",
        query(rate("basaran_requests_total", "endpoint"), "{{endpoint}}"),
    )
    yield stacked(
        "Rejections",
        "Requests refused per second. queue_full, draining and not_ready are the servers' limits, the others "
        "are the clients' mistakes.",
        "reqps",
        query(rate("basaran_requests_rejected_total", "reason", POD), "{{reason}}"),
    )
    yield lines(
        "Disconnects",
        "Clients per second that closed the connection before their answer was complete, by server.",
        "suffix: clients/s",
        query(rate("basaran_client_disconnects_total", "pod"), "{{pod}}"),
    )
    yield stacked(
        "HTTP answers",
        "All answers per second by status, those to metadata and unknown routes included. An error after a "
        "stream began is a 2xx here.",
        "reqps",
        query(rate("basaran_http_requests_total", "status", POD), "{{status}}"),
    )


def lengths() -> Iterator[Panel]:
    """What is asked of the servers."""
    yield percentiles("Prompt length", "Tokens of a prompt.", TOKENS, "request_prompt_tokens")
    yield percentiles("Answer length", "Tokens generated for a request.", TOKENS, "request_generation_tokens")
    yield percentiles(
        "Allowed answer length",
        "max_tokens as clients ask for it. Far above the answers' length: they ask for the most there is.",
        TOKENS,
        "request_params_max_tokens",
    )
    yield heatmap("Prompts, all of them", "How many prompts were how long.", TOKENS, "request_prompt_tokens")
    yield heatmap(
        "Answers, all of them", "How many answers were how long.", TOKENS, "request_generation_tokens"
    )


def pods() -> Iterator[Panel]:
    """Each server by itself."""
    mappings = {str(key): {"text": name, "color": colour} for key, (name, colour) in STATES.items()}
    yield panel(
        "state-timeline",
        "State",
        "What each server was doing. Unreachable: Prometheus got no answer.",
        "short",
        [query(state(), "{{pod}}")],
        defaults={
            "custom": {"fillOpacity": 80, "lineWidth": 0},
            "mappings": [{"type": "value", "options": mappings}],
            "color": {"mode": "thresholds"},
        },
        options={
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single"},
        },
    )
    yield lines(
        "Age of the last step",
        "How long ago each engine with work in hand made a step; 0 without work. Over 120 s the server "
        "counts as stalled and is restarted.",
        "s",
        query(
            f"max by (pod, replica, device) (basaran_replica_step_age_seconds{{{POD}}})",
            "{{pod}} {{replica}} {{device}}",
        ),
    )
    yield lines(
        "Engine restarts",
        "Engines that died and were replaced. Each time their streams ended with an error.",
        "short",
        query(
            f"sum by (pod, replica) (increase(basaran_replica_restarts_total{{{POD}}}[$__rate_interval]))",
            "{{pod}} {{replica}}",
        ),
    )
    yield lines(
        "Device memory",
        "Used and total memory of each device.",
        "bytes",
        query(
            f"max by (pod, device, kind) (basaran_device_memory_bytes{{{POD}}})",
            "{{pod}} {{device}} {{kind}}",
        ),
    )
    yield lines(
        "Out of memory",
        "Steps that failed because a device had no memory left.",
        "short",
        query(
            f"sum by (pod, device) (increase(basaran_device_oom_total{{{POD}}}[$__rate_interval]))",
            "{{pod}} {{device}}",
        ),
    )
    yield lines(
        "CPU of the HTTP process",
        "Cores used by the process that answers requests; engines are processes of their own. Near 1 it is "
        "the bottleneck, since Python runs one thread at a time.",
        "suffix: cores",
        query(rate("process_cpu_seconds_total", "pod", POD), "{{pod}}"),
    )
    yield lines(
        "Memory of the HTTP process",
        "Resident memory of the process that answers requests; engines are processes of their own.",
        "bytes",
        query(f"max by (pod) (process_resident_memory_bytes{{{POD}}})", "{{pod}}"),
    )
    yield lines(
        "Time to load the model",
        "How long each server took to load its model: what a restart costs.",
        "s",
        query(f"max by (pod) (basaran_model_load_seconds{{{MODEL}}})", "{{pod}}"),
    )
    info = f"basaran_model_info{{{MODEL}}}"
    build = f"max by (namespace, job, instance, version, torch, transformers) (basaran_build_info{{{POD}}})"
    yield panel(
        "table",
        "What runs",
        "The model and the build of each server. Two builds: a rollout is under way, or stuck.",
        "short",
        [
            query(
                f"{info} * on (namespace, job, instance) group_left (version, torch, transformers) {build}",
                format="table",
                instant=True,
                range=False,
            )
        ],
        transformations=[
            {
                "id": "filterFieldsByName",
                "options": {
                    "include": {
                        "names": [
                            *("pod", "model_name", "revision", "dtype", "device", "runner"),
                            *("version", "torch", "transformers"),
                        ]
                    }
                },
            }
        ],
        options={"cellHeight": "sm", "showHeader": True},
    )


# The whole


def variables() -> list[Panel]:
    """What a viewer can choose."""

    def labels(name: str, label: str, metric: str, everything: str | None) -> Panel:
        expression = f"label_values({metric}, {label})"
        return {
            "type": "query",
            "name": name,
            "label": name,
            "datasource": DATASOURCE,
            "definition": expression,
            "query": {"qryType": 1, "query": expression, "refId": "variable"},
            # When the time range changes: a pod that is gone was there then.
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": everything,
            "current": {"text": ["All"], "value": ["$__all"], "selected": True},
            "options": [],
        }

    def bound(name: str, label: str, bounds: tuple[str, ...], default: str) -> Panel:
        return {
            "type": "custom",
            "name": name,
            "label": label,
            "query": ",".join(bounds),
            "multi": False,
            "includeAll": False,
            "current": {"text": default, "value": default, "selected": True},
            "options": [{"text": each, "value": each, "selected": each == default} for each in bounds],
        }

    # Where there is no such label, .* still finds the servers. Not for the job: all jobs of a Prometheus are
    # more than ours, and `up` is theirs too.
    return [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "data source",
            "query": "prometheus",
            "refresh": 1,
            "multi": False,
            "includeAll": False,
            "current": {},
            "options": [],
        },
        labels("namespace", "namespace", "basaran_build_info", ".*"),
        labels("job", "job", 'basaran_build_info{namespace=~"$namespace"}', None),
        labels("model", "model_name", 'basaran_requests_total{namespace=~"$namespace",job=~"$job"}', ".*"),
        labels("pod", "pod", 'basaran_build_info{namespace=~"$namespace",job=~"$job"}', ".*"),
        bound("slo_first_token", "first token within, s", FIRST_TOKEN_BOUNDS, "2.5"),
        bound("slo_token", "each token within, s", TOKEN_BOUNDS, "0.2"),
    ]


def placed() -> Iterator[Panel]:
    """All panels, row by row, each with its place and number."""
    rows = (
        ("Now", tiles(), 3, 4),
        ("Latency", latency(), 8, 8),
        ("Load", load(), 6, 8),
        ("Outcomes", outcomes(), 8, 8),
        ("Lengths", lengths(), 8, 8),
        ("Servers", pods(), 8, 8),
    )
    y = number = 0
    for title, panels, width, height in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        x = 0
        for each in panels:
            if x + width > COLUMNS:
                x, y = 0, y + height
            number += 1
            yield {"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **each}
            x += width
        y += height


def dashboard() -> Panel:
    """All of it, as Grafana keeps it."""
    return {
        "uid": "basaran-ops",
        "title": "basaran_ops",
        "description": "An OpenAI-compatible inference server: what users get, what it does, what it lacks.",
        "tags": ["basaran_ops", "inference"],
        "schemaVersion": 42,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timepicker": {},
        "links": [],
        "fiscalYearStartMonth": 0,
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertname=~"Basaran.*",alertstate="firing"}',
                    "titleFormat": "{{alertname}}",
                    "textFormat": "{{severity}} {{pod}}",
                    "step": "30s",
                }
            ]
        },
        "templating": {"list": variables()},
        "panels": list(placed()),
    }


def text() -> str:
    """As it stands in the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
