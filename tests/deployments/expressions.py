"""What an expression reads, checked against what there is."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser as promql

from .metric_families import SERIES, Labels
from .promtool import recordings


def faults(expression: str) -> list[str]:
    """What is wrong with it, a sentence each. Raises ValueError if it does not parse."""
    return list(_faults(promql.parse(expression), known_series()))


def selectors(expression: str) -> list[promql.VectorSelector]:
    return list(_selectors(promql.parse(expression)))


def known_series() -> dict[str, Labels]:
    """Series with their labels: the exposed ones and those that our rules record."""
    known = dict(SERIES)
    for name, rule in recordings().items():
        known[name] = dict.fromkeys(_kept_labels(promql.parse(rule["expr"])), ())
    return known


def _kept_labels(expression: promql.Expr) -> set[str]:
    """A recording is made of sums by the same labels throughout."""
    kept = {
        tuple(node.modifier.labels) for node in _nodes(expression) if isinstance(node, promql.AggregateExpr)
    }
    if not kept:
        (inner,) = {selector.name for selector in _selectors(expression)}
        return _kept_labels(promql.parse(recordings()[inner]["expr"]))
    (labels,) = kept
    return set(labels)


def _faults(expression: promql.Expr, known: dict[str, Labels]) -> Iterator[str]:
    for selector in _selectors(expression):
        labels = known.get(selector.name)
        if labels is None:
            yield f"there is no metric {selector.name}"
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                yield f"{selector.name} has no label {matcher.name}"
            elif values := labels[matcher.name]:
                wanted = _alternatives(matcher)
                yield from (
                    f"{selector.name} never has {matcher.name}={value!r}"
                    for value in wanted
                    if value not in values
                )
    for node in _nodes(expression):
        present = {name for selector in _selectors(node) for name in known.get(selector.name, ())}
        for name in _named_labels(node):
            if name not in present:
                yield f"nothing in `{node.prettify()}` has a label {name}"


def _alternatives(matcher: promql.Matcher) -> list[str]:
    return matcher.value.split("|") if matcher.op == promql.MatchOp.Re else [matcher.value]


def _named_labels(node: promql.Expr) -> list[str]:
    """The labels of by, on, ignoring and group_left."""
    if isinstance(node, promql.AggregateExpr) and node.modifier:
        return list(node.modifier.labels)
    if isinstance(node, promql.BinaryExpr) and node.modifier:
        matching = node.modifier.matching.labels if node.modifier.matching else []
        return [*matching, *(node.modifier.group_labels or [])]
    return []


def _nodes(expression: promql.Expr) -> list[promql.Expr]:
    nodes: list[promql.Expr] = []
    promql.walk(expression, nodes.append)
    return nodes


def _selectors(expression: promql.Expr) -> Iterator[promql.VectorSelector]:
    for node in _nodes(expression):
        if isinstance(node, promql.VectorSelector):
            yield node
