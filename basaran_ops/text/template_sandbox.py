"""Chat templates as programs within limits.

A template is a program that comes with a model, and the server runs it in its own process. Jinja's sandbox
keeps it from Python's internals, but not from going on for ever or taking all memory: what is here does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from .template_limits import CONTAINER, ITEM, PREDICTIONS, Meter, RenderLimits, children, percent, refuse


class Program:
    """A compiled template: what transformers wants of one. One thread at a time."""

    def __init__(self, template: str, limits: RenderLimits) -> None:
        """Raises TemplateError."""
        if len(template) > limits.source:
            raise TemplateError(f"it is longer than {limits.source:,} characters")
        with _template_errors_alone():
            self.environment = Environment(limits)
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


LONGEST_COMPARISON = 16
"""Values that one expression compares at most."""


class MeteringCode(CodeGenerator):
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


class Formatter(SandboxedFormatter):
    """For str.format, field by field."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        environment = cast("Environment", self._env)
        environment.meter.step()
        environment.used(value)
        environment.meter.check(sum(map(int, re.findall(r"\d{1,4000}", format_spec))))
        return environment.made(super().format_field(value, format_spec))


class Environment(ImmutableSandboxedEnvironment):
    """Transformers' environment, within limits: every loop's turn, call, filter and operator is a step, and
    what could be large is measured before it is made.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = MeteringCode

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
        self.meter = Meter(self._limits, variables)

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
                refuse("its numbers are too large")
        elif children(value) is not None:
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
            if children(value) is not None:
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
            self.meter.check(percent(self.meter, left, right))
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
        text, formatter = value.__self__, Formatter(self)

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
            refuse("its numbers are too large")


def _quiet(namespace: type[Any]) -> type[Any]:
    """Namespaces can be changed, and hold each other: written out they could go on for ever."""
    return type("Namespace", (namespace,), {"__repr__": lambda self: "<Namespace>"})
