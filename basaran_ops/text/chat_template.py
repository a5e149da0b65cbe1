"""Conversations as the text their model was trained on.

A template is a program that comes with a model, and the server runs it in its own process. Jinja's sandbox
keeps it from Python's internals, but not from going on for ever or taking all memory: what is here does.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MappingView, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, TemplateRuntimeError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What transformers raises, given messages that the template does not expect."""

LONGEST_MESSAGE = 1000
"""Characters of an error that are told: a template chooses its own."""


class ChatTemplateMissing(ValueError):
    """Neither the operator nor the tokenizer has a template."""


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


class ChatTemplate:
    """Renders messages and encodes them. The operator's template goes before the tokenizer's own."""

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, limits: RenderLimits | None = None
    ) -> None:
        # A copy of its own, and one thread at a time: transformers changes the tokenizer's state to render.
        self._tokenizer = copy.deepcopy(tokenizer.hf)
        self._lock = threading.Lock()
        # Names that mean something to transformers: a request must not reach them as variables.
        self._reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys()
        self._template = template or self._tokenizer.chat_template
        self._limits = limits or RenderLimits()
        self._programs: dict[str, _Program] = {}

    @property
    def missing(self) -> bool:
        """Whether there is none, neither the operator's nor the tokenizer's."""
        return self._template is None

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> list[int]:
        """Token ids of a conversation. Control tokens in the messages are ordinary text.

        Raises ChatTemplateMissing, or ValueError saying why these messages cannot be rendered.
        """
        if self.missing:
            raise ChatTemplateMissing(
                "the model has no chat template; set MODEL_CHAT_TEMPLATE to a file with one"
            )
        if taken := sorted(self._reserved & variables.keys()):
            raise ValueError(f"{taken[0]} is not a variable of a chat template")
        conversation = [self._adapted(message) for message in messages]
        try:
            with self._lock, _compiled_by(self._compiled):
                ids = self._tokenizer.apply_chat_template(
                    conversation,
                    chat_template=self._template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    sanitize_control_tokens=True,
                    return_dict=False,
                    **variables,
                )
        except RENDERING_ERRORS as error:
            told = str(error)[:LONGEST_MESSAGE]
            raise ValueError(f"the chat template cannot render these messages: {told}") from error
        return list(ids)

    def _compiled(self, template: str) -> _Program:
        if template not in self._programs:
            self._programs[template] = _Program(template, self._limits)
        return self._programs[template]

    def _adapted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        adapted = dict(message)
        if adapted["role"] == "developer" and "developer" not in str(self._template):
            adapted["role"] = "system"
        return adapted


# -- transformers compiles templates by a function of its own, which is led here while a ChatTemplate encodes

_compile: ContextVar[Callable[[str], _Program] | None] = ContextVar("compile", default=None)


@contextmanager
def _compiled_by(function: Callable[[str], _Program]) -> Iterator[None]:
    """Let transformers compile templates by this, in this thread."""
    _lead_transformers_here()
    token = _compile.set(function)
    try:
        yield
    finally:
        _compile.reset(token)


@cache
def _lead_transformers_here() -> None:
    from transformers.utils import chat_template_utils  # two seconds: see import_library

    theirs = getattr(chat_template_utils, "_compile_jinja_template", None)
    if theirs is None:
        log.warning("this release of transformers renders chat templates without any limit")
        return

    @wraps(theirs)
    def compile_template(template: str) -> Any:
        ours = _compile.get()
        return theirs(template) if ours is None else ours(template)

    chat_template_utils._compile_jinja_template = compile_template  # noqa: SLF001 - it has no public name


class _Program:
    """A compiled template: what transformers wants of one. One thread at a time."""

    def __init__(self, template: str, limits: RenderLimits) -> None:
        """Raises TemplateError."""
        if len(template) > limits.source:
            raise TemplateError(f"it is longer than {limits.source:,} characters")
        with _template_errors_alone():
            self.environment = _Environment(limits)
            self._template = self.environment.from_string(template)

    def render(self, /, **variables: Any) -> str:
        """Raises TemplateError, whatever goes wrong."""
        with _template_errors_alone():
            self.environment.begin(variables)
            try:
                text = self._template.render(variables)
                self.environment.meter.check_text(text)
                return text
            finally:
                self.environment.begin({})


@contextmanager
def _template_errors_alone() -> Iterator[None]:
    """Make a TemplateError of whatever a template raises: it is a program, and can raise anything."""
    try:
        yield
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


# -- what a render takes ----------------------------------------------------------------------------------


UNLIMITED = 2**62

CONTAINER, ITEM = 64, 8
"""What a list, or the like, and each of its items count beside the items themselves: bytes, about."""


class _Meter:
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
        self._steps -= 1
        if self._steps < 0:
            _stop("it takes too many steps")
        if time.thread_time() > self._until:
            _stop(f"it takes longer than {self.limits.seconds:g} s")

    def spend(self, size: int) -> None:
        """Take note of something of this size before or when it is made."""
        self._work -= size
        if size > self.size or self._work < 0:
            _stop("it makes too much text")

    def check(self, size: int) -> None:
        """Raise for what would be of this size."""
        if size > self.size:
            _stop("it makes too much text")

    def check_text(self, text: str) -> None:
        """Raise for a conversation that is too long."""
        if len(text) > self._text:
            _stop("it writes too much text")

    def measure(self, value: object, level: int = 0) -> tuple[int, int]:
        """Characters of a value when it is written out, roughly, and how deep it is.

        What is in a list ten times counts ten times: a few lists in lists could be written out for ever.
        """
        if isinstance(value, str | bytes):
            return len(value) + 1, 0
        children = _children(value)
        if children is None:
            return 4, 0
        if id(value) in self._known:
            return self._known[id(value)][1:]
        if level >= self.limits.depth:
            _stop("its values are nested too deeply")
        size, depth = 2, 0
        for child in children:
            child_size, child_depth = self.measure(child, level + 1)
            size, depth = size + child_size, max(depth, child_depth + 1)
            self.check(size)
        if level + depth > self.limits.depth:
            _stop("its values are nested too deeply")
        if not isinstance(value, MappingView):
            # The value too, so that no other gets its id. A template cannot change it.
            self._known[id(value)] = value, size, depth
        return size, depth


def _children(value: object) -> Iterable[object] | None:
    if isinstance(value, Mapping):
        value = value.items()
    if isinstance(value, ItemsView):
        return (item for pair in value for item in pair)
    if isinstance(value, list | tuple | set | frozenset | MappingView):
        return cast("Iterable[object]", value)
    return None


def _stop(reason: str) -> NoReturn:
    raise TemplateRuntimeError(reason)


# -- Jinja, metered ---------------------------------------------------------------------------------------


LONGEST_COMPARISON = 16
"""Values that one expression compares at most."""


class _MeteringCode(CodeGenerator):
    """Tells the environment of values that a template makes without calling anything."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - Jinja's names
        self._through("displayed", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._through("displayed", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._through("displayed", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._through("displayed", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        if len(node.ops) > LONGEST_COMPARISON:
            self.fail("it compares too many values at once", node.lineno)
        self._through("stepped", super().visit_Compare, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        volatile = "(markup_join if context.eval_ctx.autoescape else str_join)"
        plain = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        self.write(f"{volatile if frame.eval_ctx.volatile else plain}(environment.to_be_joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _through(
        self, method: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame
    ) -> None:
        self.write(f"environment.{method}(")
        visit(node, frame)
        self.write(")")


class _Formatter(SandboxedFormatter):
    """For str.format, field by field."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        environment = cast("_Environment", self._env)
        environment.meter.step()
        environment.used(value)
        environment.meter.check(sum(map(int, re.findall(r"\d{1,4000}", format_spec))))
        return environment.made(super().format_field(value, format_spec))


class _Environment(ImmutableSandboxedEnvironment):
    """Transformers' environment, within limits: every loop's turn, call, filter and operator is a step, and
    what could be large is measured before it is made.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _MeteringCode

    def __init__(self, limits: RenderLimits) -> None:
        from transformers.utils import chat_template_utils

        theirs = chat_template_utils._cached_compile_jinja_template("").environment  # noqa: SLF001
        self._limits = limits
        self.begin({})
        super().__init__(
            trim_blocks=theirs.trim_blocks,
            lstrip_blocks=theirs.lstrip_blocks,
            extensions=[type(extension) for extension in theirs.extensions.values()],
            finalize=self.output,
            optimized=False,  # nothing is computed before the meter runs
        )
        self.globals |= theirs.globals | {"namespace": _quiet(theirs.globals["namespace"])}
        del self.globals["lipsum"]
        self.filters = {name: self._metered(name, each) for name, each in theirs.filters.items()}
        self.tests = {name: self._metered(name, each) for name, each in theirs.tests.items()}

    def begin(self, variables: Mapping[str, Any]) -> None:
        """A render begins, with these."""
        self.meter = _Meter(self._limits, variables)

    def tick(self) -> bool:
        """Called at each turn of a loop: the call counts."""
        return True

    @pass_context
    def output(self, context: Context, value: object) -> object:
        """What `{{ }}` writes."""
        self.meter.step()
        self.used(value)
        return value

    def made(self, value: Any) -> Any:
        """Take note of a new value."""
        if isinstance(value, str | bytes):
            self.meter.spend(len(value))
        elif isinstance(value, int):
            if value.bit_length() > self._limits.bits:
                _stop("its numbers are too large")
        elif _children(value) is not None:
            self.meter.spend(CONTAINER + ITEM * len(value))
            self.meter.measure(value)
        return value

    def displayed(self, value: Any) -> Any:
        """The same for one that the template writes down, as [a, b], or cuts out, as a[1:]."""
        self.meter.step()
        return self.made(value)

    def stepped(self, value: object) -> object:
        """A comparison was made."""
        self.meter.step()
        return value

    def used(self, *values: object) -> None:
        """Values are about to be read to their ends."""
        for value in values:
            if _children(value) is not None:
                self.meter.measure(value)

    def to_be_joined(self, values: tuple[object, ...]) -> tuple[object, ...]:
        self.meter.step()
        self.meter.spend(sum(self.meter.measure(value)[0] for value in values))
        return values

    def concat(self, parts: Iterable[str]) -> str:
        """All text goes through here: a template's, a macro's, a block's."""
        pieces, size = [], 0
        for part in parts:
            self.meter.spend(len(part))
            size += len(part)
            self.meter.check(size)
            pieces.append(part)
        return "".join(pieces)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.step()
        if function == self.tick:
            return True
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        if isinstance(function, Macro):
            # It may know them as `varargs` and `kwargs`.
            self.made(args), self.made(given)
        self.used(*args, *given.values())
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | bytes | int | float):
            args = self._checked(function.__name__, owner, args, given)
        return self.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.step()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str | bytes):
            self.meter.check(_percent(self.meter, left, right))
        elif operator == "**" and numbers and right > 0:
            self._check_bits(left.bit_length() * right)
        elif operator == "*" and numbers:
            self._check_bits(left.bit_length() + right.bit_length())
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.meter.check(times * self.meter.measure(value)[0])
        elif operator == "+":
            self.meter.check(self.meter.measure(left)[0] + self.meter.measure(right)[0])
        return self.made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.step()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Some codecs take the square of a text's length, and no template needs one.
        codec = isinstance(obj, str | bytes) and attr in ("encode", "decode")
        return not codec and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, formatter = value.__self__, _Formatter(self)

        @wraps(wrapped)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,) = args
                args = ()
            return formatter.vformat(text, args, kwargs)

        return wrapper

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            line = loop.lineno
            tick = nodes.Call(
                nodes.EnvironmentAttribute("tick", lineno=line), [], [], None, None, lineno=line
            )
            loop.body.insert(0, nodes.ExprStmt(tick, lineno=line))
            if loop.test is not None:
                loop.test = nodes.And(tick, loop.test, lineno=line)
        return tree

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or a test within the limits."""
        first = int(hasattr(function, "jinja_pass_arg"))

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            given = args[first:]
            if given:
                self.used(*given, *kwargs.values())
                if name == "join" and not isinstance(given[0], Sized):
                    given = (self.made(list(given[0])), *given[1:])
                given = (given[0], *self._checked(name, given[0], given[1:], kwargs))
            return self.made(function(*args[:first], *given, **kwargs))

        return metered

    def _checked(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Raise if this filter, or method of a text or number, would make too much; its arguments."""
        if name == "join" and args and isinstance(value, str) and not isinstance(args[0], Sized):
            args = (self.made(list(args[0])), *args[1:])
        predict = PREDICTIONS.get(name)
        if predict is not None:
            measured = [
                self.meter.measure(each)[0] if not isinstance(each, int) else abs(int(each))
                for each in (*args, *kwargs.values())
            ]
            self.meter.check(predict(self.meter, value, args, sum(measured)))
        return args

    def _check_bits(self, bits: int) -> None:
        if bits > self._limits.bits:
            _stop("its numbers are too large")


def _quiet(namespace: type[Any]) -> type[Any]:
    """Namespaces can be changed, and hold each other: written out they could go on for ever."""
    return type("Namespace", (namespace,), {"__repr__": lambda self: "<Namespace>"})


# -- how large the results of filters and methods become ----------------------------------------------------

PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
"""The width and the precision of a field in a text that is formatted by %."""

LONGEST_PERCENT = 10_000
"""Characters of such a text."""


def _percent(meter: _Meter, text: str | bytes, values: object) -> int:
    if len(text) > LONGEST_PERCENT:
        _stop("it formats too long a text")
    decoded = text.decode("latin-1") if isinstance(text, bytes) else text
    widths = [number for field in PERCENT.findall(decoded) for number in field if number]
    if "*" in widths:
        _stop("it formats with a width that is not written out")
    return len(text) + decoded.count("%") * meter.measure(values)[0] + sum(int(width) for width in widths)


Prediction = Callable[[_Meter, Any, tuple[Any, ...], int], int]
"""Of a value, the arguments, and the sum of these: lengths of texts, and numbers themselves."""


def _sum(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return meter.measure(value)[0] + extent


def _product(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return meter.measure(value)[0] * (1 + extent)


def _lists(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """As many as the argument says, of what is in one."""
    return CONTAINER * extent + meter.measure(value)[0]


def _scan(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """For what takes time, but no memory."""
    return _product(meter, value, args, extent) // 16


def _square(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return (meter.measure(value)[0] + extent) ** 2 // 16


def _formatted(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    return _percent(meter, str(value), args) + len(str(value)) * extent


def _per_line(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    text = str(value)
    return len(text) + (text.count("\n") + 1) * (4 + extent)


def _per_match(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    if len(args) < 2 or not isinstance(args[0], str):
        return _product(meter, value, args, extent)
    text = str(value)
    return len(text) + text.count(args[0]) * len(str(args[1]))


def _per_item(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
    """A list of texts by the filter, or the text between them by the method."""
    if isinstance(value, str) and args and isinstance(args[0], Sized):
        return meter.measure(args[0])[0] + len(args[0]) * len(value)
    return meter.measure(value)[0] + len(value) * extent


def _added_up(meter: _Meter, value: Any, args: tuple[Any, ...], extent: int) -> int:
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
