"""Figures of several runs: medians, quantiles, and how a cost grows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(runs: Iterable[T]) -> T:
    """Of each figure by itself; runs are dataclasses of numbers."""
    runs = list(runs)
    columns: Any = zip(*(asdict(figures).values() for figures in runs), strict=True)  # type: ignore[call-overload]
    return type(runs[0])(*(statistics.median(column) for column in columns))


@dataclass(frozen=True, slots=True)
class Growth:
    """A cost against a size, fitted by least squares of relative errors."""

    coefficients: tuple[float, ...]
    """Of 1, x and, where it was asked for, x squared."""
    error: float
    """The largest relative error of the fit."""
    r_squared: float
    """The share of the costs' variance that the fit explains."""
    exponent: float
    """Of the power law through the larger half of the sizes: 1 where twice the size costs twice as much."""


def growth(sizes: Sequence[float], costs: Sequence[float], *, square: bool = False) -> Growth:
    """Fit at least four costs, all above 0."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    powers = np.stack([x**power for power in range(3 if square else 2)], axis=1)
    coefficients = np.linalg.lstsq(powers / y[:, None], np.ones_like(y), rcond=None)[0]
    fitted = powers @ coefficients
    error = np.abs(fitted / y - 1).max()
    variance = ((y - y.mean()) ** 2).sum()
    # Costs that are all the same vary by nothing, and the fit leaves nothing of it.
    r_squared = 1 - ((y - fitted) ** 2).sum() / variance if variance else 1.0
    half = slice(len(x) // 2, None)
    exponent = np.polyfit(np.log(x[half]), np.log(y[half]), 1)[0]
    return Growth(tuple(map(float, coefficients)), float(error), float(r_squared), float(exponent))
