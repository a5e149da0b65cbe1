"""What a chat template may take, what is left of it, and how much its operations would take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Mapping, MappingView, Sized
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from jinja2 import TemplateRuntimeError


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What a template may take for itself. Steps, size, work and text grow with what it is given."""

    steps: int = 2_000_000
    """Turns of loops, calls, filters, operators and outputs."""
    size: int = 2**23
    """Characters and items of a value, written out."""
    work: int = 2**25
    """Characters and items of all values that are made."""
    text: int = 2**18
    """Characters of the conversation's text. To encode one takes a few hundred bytes."""
    seconds: float = 5.0
    """Of the thread's own time."""
    depth: int = 300
    """Of values within values. Hashing a tuple of 100,000 would overflow the C stack."""
    bits: int = 2**14
    """Of a number."""
    source: int = 2**20
    """Characters of the template."""


UNLIMITED = 2**62

CONTAINER, ITEM = 64, 8
"""What a list, or the like, and each of its items count beside the items themselves: bytes, about."""


class Meter:
    """What is left of a render's limits."""

    def __init__(self, limits: RenderLimits, given: Mapping[str, Any]) -> None:
        self.limits = limits
        self._known: dict[int, tuple[object, int, int]] = {}
        # Nothing that was given is too large: the request's own limits were kept.
        self.size = UNLIMITED
        given_size = self.measure(given)[0]
        self.size = limits.size + 8 * given_size
        self._text = limits.text + 4 * given_size
        self._steps = limits.steps + 16 * given_size
        self._work = limits.work + 32 * given_size
        self._until = time.thread_time() + limits.seconds

    def step(self) -> None:
        """Take note of a turn, a call, an operator or the like."""
        self._steps -= 1
        if self._steps < 0:
            refuse("it takes too many steps")
        if time.thread_time() > self._until:
            refuse(f"it takes longer than {self.limits.seconds:g} s")

    def spend(self, size: int) -> None:
        """Take note of something of this size before or when it is made."""
        self._work -= size
        if size > self.size or self._work < 0:
            refuse("it makes too much text")

    def check(self, size: int) -> None:
        """Raise for what would be of this size."""
        if size > self.size:
            refuse("it makes too much text")

    def check_text(self, text: str) -> None:
        """Raise for a conversation that is too long."""
        if len(text) > self._text:
            refuse("it writes too much text")

    def measure(self, value: object, level: int = 0) -> tuple[int, int]:
        """Characters of a value when it is written out, roughly, and how deep it is.

        What is in a list ten times counts ten times: a few lists in lists could be written out for ever.
        """
        if isinstance(value, str | bytes):
            return len(value) + 1, 0
        inside = children(value)
        if inside is None:
            return 4, 0
        if id(value) in self._known:
            return self._known[id(value)][1:]
        if level >= self.limits.depth:
            refuse("its values are nested too deeply")
        size, depth = 2, 0
        for child in inside:
            child_size, child_depth = self.measure(child, level + 1)
            size, depth = size + child_size, max(depth, child_depth + 1)
            self.check(size)
        if level + depth > self.limits.depth:
            refuse("its values are nested too deeply")
        if not isinstance(value, MappingView):
            # The value too, so that no other gets its id. A template cannot change it.
            self._known[id(value)] = value, size, depth
        return size, depth


def children(value: object) -> Iterable[object] | None:
    """What a value holds, if it is a container of the kinds that templates make."""
    if isinstance(value, Mapping):
        value = value.items()
    if isinstance(value, ItemsView):
        return (item for pair in value for item in pair)
    if isinstance(value, list | tuple | set | frozenset | MappingView):
        return cast("Iterable[object]", value)
    return None


def refuse(reason: str) -> NoReturn:
    """End the render."""
    raise TemplateRuntimeError(reason)


# -- how large the results of filters and methods become ----------------------------------------------------

PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
"""The width and the precision of a field in a text that is formatted by %."""

LONGEST_PERCENT = 10_000
"""Characters of such a text."""


def percent(meter: Meter, text: str | bytes, values: object) -> int:
    """How long `text % values` becomes at most."""
    if len(text) > LONGEST_PERCENT:
        refuse("it formats too long a text")
    decoded = text.decode("latin-1") if isinstance(text, bytes) else text
    widths = [number for field in PERCENT.findall(decoded) for number in field if number]
    if "*" in widths:
        refuse("it formats with a width that is not written out")
    return len(text) + decoded.count("%") * meter.measure(values)[0] + sum(int(width) for width in widths)


Prediction = Callable[[Meter, Any, tuple[Any, ...], int], int]
"""Of a value, the arguments, and the sum of these: lengths of texts, and numbers themselves."""


def _sum(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return meter.measure(value)[0] + extent


def _product(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return meter.measure(value)[0] * (1 + extent)


def _lists(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """As many as the argument says, of what is in one."""
    return CONTAINER * extent + meter.measure(value)[0]


def _scan(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """For what takes time, but no memory."""
    return _product(meter, value, args, extent) // 16


def _square(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return (meter.measure(value)[0] + extent) ** 2 // 16


def _formatted(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return percent(meter, str(value), args) + len(str(value)) * extent


def _per_line(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    text = str(value)
    return len(text) + (text.count("\n") + 1) * (4 + extent)


def _per_match(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    if len(args) < 2 or not isinstance(args[0], str):
        return _product(meter, value, args, extent)
    text = str(value)
    return len(text) + text.count(args[0]) * len(str(args[1]))


def _per_item(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """A list of texts by the filter, or the text between them by the method."""
    if isinstance(value, str) and args and isinstance(args[0], Sized):
        return meter.measure(args[0])[0] + len(args[0]) * len(value)
    return meter.measure(value)[0] + len(value) * extent


def _added_up(meter: Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """Numbers, or lists, each of which is copied with all before it."""
    size = meter.measure(value)[0]
    return size if extent == 0 or not isinstance(value, Sized) else size * len(value)


PREDICTIONS: Mapping[str, Prediction] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes", "truncate", "batch"), _sum),
    **dict.fromkeys(("expandtabs", "tojson", "translate"), _product),
    # From the end a text is looked for character by character at each place.
    **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip", "trim"), _scan),
    **dict.fromkeys(("striptags", "urlize", "wordwrap", "xmlattr", "pprint", "round"), _square),
    "format": _formatted,
    "slice": _lists,
    "indent": _per_line,
    "replace": _per_match,
    "join": _per_item,
    "sum": _added_up,
}
