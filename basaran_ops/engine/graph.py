"""A model's forward pass as a flat list of operations, recorded once and fused.

Python's way through a transformers model costs as much as the arithmetic where few tokens pass. What the
forward does is recorded as a graph of tensor operations, `fusion` joins those that belong together, and
`CompiledForward` calls them one after the other.
"""

from __future__ import annotations

import linecache
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from . import fusion
from .attention import SlotAttention
from .forward import PanelLinear, Program
from .linear import PackedLinear
from .weights import first_line

Operation = Callable[..., Any]


class Step(NamedTuple):
    """One operation, bound to registers."""

    operation: Operation
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    """Takes them from the registers."""
    place: int
    """Where the result goes."""
    done: tuple[int, ...]
    """Registers that nobody reads after it."""


class GraphUnfit(Exception):
    """The model's forward cannot be recorded."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many tokens a recorded pass has, and how many of them get logits."""

    tokens: int
    rows: int


SMALL, LARGE = Sizes(7, 2), Sizes(257, 5)
"""Two recordings: what differs between them is what depends on the sizes. Far apart, so that thresholds lie
between them, and such that no T - 1 or T // 2 is a multiple of the rows in both."""


def record(model: PreTrainedModel, attention: SlotAttention, *, int8: bool = False) -> CompiledForward:
    """Record, fuse and bind the forward of a model whose attention is `attention`; `int8`: with its linear
    layers in 8 bits, where that can be done.

    One at a time in a process: the recorder has one place for its mode.

    Raises GraphUnfit where the forward depends on its input by more than the number of tokens and rows.
    """
    try:
        module, larger = (_recorded_at(sizes, model, attention) for sizes in (SMALL, LARGE))
        generalize(module, larger)
        fusion.fuse(module, attention, int8=int8)
    except GraphUnfit:
        raise
    except Exception as error:
        # Whatever a model's own code, or the recorder, raises where a value decides the way.
        raise GraphUnfit(f"{type(error).__name__}: {first_line(error)}") from error
    return CompiledForward(module)


def _recorded_at(sizes: Sizes, model: PreTrainedModel, attention: SlotAttention) -> fx.GraphModule:
    # Two tensors: the recorder tells its inputs apart by what they are.
    ids, positions = (torch.arange(sizes.tokens)[None] for _ in range(2))
    rows = torch.arange(sizes.rows)

    def forward(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        output = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=rows)
        logits: torch.Tensor = output.logits
        return logits

    # Fake tensors have no values: a forward that asks for one fails here rather than go one way for ever.
    recorder = make_fx(forward, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)
    with torch.no_grad(), attention.recorded(), _kept(model), _without_tracebacks():
        module: fx.GraphModule = recorder(ids, positions, rows)
    _forget_source(module)
    return module


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Put back what a forward writes to its modules, CTRL's table of positions for one: while it is recorded,
    tensors have no values.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]  # noqa: SLF001
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()  # noqa: SLF001
            module._buffers.update(buffers)  # noqa: SLF001


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """The recorder logs the traceback of what it cannot record, and raises it too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forget_source(module: fx.GraphModule) -> None:
    """Let go of the Python that a graph was turned into, which torch keeps for ever and nobody runs here."""
    name = type(module).forward.__code__.co_filename
    linecache.cache.pop(name, None)
    graph_module._loader.eval_cache.pop(name, None)  # noqa: SLF001 - there is no public way to take it out


def generalize(module: fx.GraphModule, larger: fx.GraphModule) -> None:
    """Put the numbers of tokens and rows in the place of every number that differs between the recordings.

    Raises GraphUnfit where they differ by more.
    """
    graph = module.graph
    ids, _, rows = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(rows):
        tokens = graph.call_function(torch.Tensor.size, (ids, 1))
        count = graph.call_function(torch.Tensor.size, (rows, 0))
    added = {tokens, count}
    own = [node for node in graph.nodes if node not in added]
    if len(own) != len(larger.graph.nodes):
        raise GraphUnfit("its forward takes other ways for other numbers of tokens")
    names = {theirs.name: ours for ours, theirs in zip(own, larger.graph.nodes, strict=True)}
    for ours, theirs in zip(own, larger.graph.nodes, strict=True):
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            raise GraphUnfit("its forward takes other ways for other numbers of tokens")
        if ours.op == "get_attr" and not _same_attribute(module, larger, str(ours.target)):
            raise GraphUnfit("its forward makes a table as long as its input")
        matching = _Matching(graph, ours, names, {SMALL.tokens: tokens, SMALL.rows: count})
        ours.args = matching.merged(ours.args, theirs.args)
        ours.kwargs = matching.merged(ours.kwargs, theirs.kwargs)


def _same_attribute(module: fx.GraphModule, larger: fx.GraphModule, name: str) -> bool:
    ours, theirs = _attribute(module, name), _attribute(larger, name)
    if ours is theirs or not isinstance(ours, torch.Tensor):
        return True
    return ours.shape == theirs.shape and torch.equal(ours, theirs)


class _Matching:
    """The arguments of one node in both recordings."""

    def __init__(
        self, graph: fx.Graph, node: fx.Node, names: Mapping[str, fx.Node], counts: Mapping[int, fx.Node]
    ) -> None:
        self._graph = graph
        self._node = node
        self._names = names
        self._counts = counts

    def merged(self, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
            return type(ours)(self.merged(a, b) for a, b in zip(ours, theirs, strict=True))
        if isinstance(ours, dict) and ours.keys() == theirs.keys():
            return {key: self.merged(value, theirs[key]) for key, value in ours.items()}
        if isinstance(ours, fx.Node):
            if self._names.get(theirs.name) is ours:
                return ours
        elif type(ours) is type(theirs) and ours == theirs:
            return ours
        elif type(ours) is int:
            return self._count(ours, theirs)
        raise GraphUnfit(f"{self._node.target} differs with the number of tokens")

    def _count(self, ours: int, theirs: int) -> fx.Node:
        """A number that is a multiple of the tokens or of the rows."""
        for small, large in ((SMALL.tokens, LARGE.tokens), (SMALL.rows, LARGE.rows)):
            if ours % small == 0 and ours // small * large == theirs:
                count = self._counts[small]
                if ours == small:
                    return count
                with self._graph.inserting_before(self._node):
                    return self._graph.call_function(operator.mul, (count, ours // small))
        raise GraphUnfit(f"{self._node.target} depends on the number of tokens")


class CompiledForward:
    """Operations bound to numbered registers, which are used again once their value is read for the last
    time: a pass holds no more memory than the model's own.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._registers: list[Any] = []
        self._steps: list[Step] = []
        self._inputs: list[int] = []
        self._output = -1
        self._bind(module)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits [1, rows, vocab] of the tokens `rows` [R] among ids and positions [1, T], int64."""
        registers = self._registers.copy()
        for place, value in zip(self._inputs, (ids, positions, rows), strict=True):
            registers[place] = value
        for operation, arguments, place, done in self._steps:
            registers[place] = operation(*arguments(registers))
            for read in done:
                registers[read] = None
        logits: torch.Tensor = registers[self._output]
        return logits

    def release(self, model: PreTrainedModel) -> None:
        """Let the model's own copy of packed weights go; the model itself cannot run any more.

        A weight that an operation still reads, such as an embedding that is the head too, stays.
        """
        linears = self.linears
        packed = {weight.data_ptr() for linear in linears for weight in linear.weights}
        kept = {value.data_ptr() for value in self._registers if isinstance(value, torch.Tensor)}
        for parameter in model.parameters():
            if parameter.data_ptr() in packed - kept:
                parameter.data = parameter.data.new_empty(0)
        for linear in linears:
            linear.weights = ()
        self._unmap(model)

    def _unmap(self, model: PreTrainedModel) -> None:
        """Copy what is left of the weights: each may be a piece of a mapped file, all of whose pages stay in
        memory while one piece is held.
        """
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        held = [value for value in self._registers if isinstance(value, torch.Tensor)]
        # Each once: what has been copied may lie where another one lay.
        once = {id(tensor): tensor for tensor in (*held, *model.parameters(), *model.buffers())}
        for tensor in once.values():
            if tensor.numel() and tensor.is_contiguous():
                key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
                if key not in copies:
                    copies[key] = tensor.detach().clone()
                tensor.data = copies[key]

    @property
    def linears(self) -> list[PackedLinear | PanelLinear]:
        """The linear layers that have weights of their own."""
        found: list[PackedLinear | PanelLinear] = []
        for step in self._steps:
            if isinstance(step.operation, (PackedLinear, PanelLinear)):
                found.append(step.operation)
            elif isinstance(step.operation, Program):
                found += step.operation.linears
        return found

    @property
    def programs(self) -> list[Program]:
        """The runs of operations that are one call each."""
        return [step.operation for step in self._steps if isinstance(step.operation, Program)]

    @property
    def size(self) -> int:
        """How many operations a pass is."""
        return len(self._steps) + sum(program.size - 1 for program in self.programs)

    # -- binding --------------------------------------------------------------------------------------

    def _bind(self, module: fx.GraphModule) -> None:
        last_reader: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            for source in node.all_input_nodes:
                last_reader[source] = node
        places: dict[fx.Node, int] = {}
        free: list[int] = []
        constants: dict[Any, int] = {}
        for node in module.graph.nodes:
            if node.op == "output":
                self._output = places[node.args[0]]
            elif node.op == "placeholder":
                places[node] = self._place(None)
                self._inputs.append(places[node])
            elif node.op == "get_attr":
                places[node] = self._place(_attribute(module, str(node.target)))
            else:
                operation, flat = _flatten(node)
                arguments = [
                    places[a] if isinstance(a, fx.Node) else self._constant(a, constants) for a in flat
                ]
                done = [
                    places[source]
                    for source in node.all_input_nodes
                    if last_reader[source] is node and source.op == "call_function"
                ]
                free += done
                place = places[node] = free.pop() if free else self._place(None)
                read = tuple(other for other in done if other != place)
                self._steps.append(Step(operation, _getter(arguments), place, read))

    def _place(self, value: Any) -> int:
        self._registers.append(value)
        return len(self._registers) - 1

    def _constant(self, value: Any, known: dict[Any, int]) -> int:
        key = (type(value), value)
        if key not in known:
            known[key] = self._place(value)
        return known[key]


def _attribute(module: fx.GraphModule, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _flatten(node: fx.Node) -> tuple[Operation, list[Any]]:
    """The node's operation as one of plain positional arguments, and these."""
    assert callable(node.target)
    flat, spec = torch.utils._pytree.tree_flatten((node.args, node.kwargs))  # noqa: SLF001 - what fx uses
    if not node.kwargs and not any(isinstance(argument, (list, tuple)) for argument in node.args):
        return _overload(node.target), flat
    return _Nested(_overload(node.target), spec), flat


def _overload(target: Operation) -> Operation:
    """An ATen operation without the layer of Python that looks up how to call it."""
    return target._op if isinstance(target, torch._ops.OpOverload) else target  # noqa: SLF001


class _Nested:
    """An operation whose arguments hold lists, or have names."""

    def __init__(self, operation: Operation, spec: Any) -> None:
        self._operation = operation
        self._spec = spec

    def __call__(self, *flat: Any) -> Any:
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, self._spec)  # noqa: SLF001
        return self._operation(*args, **kwargs)


def _getter(places: Sequence[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(places) == 1:
        place = places[0]
        return lambda registers: (registers[place],)
    return operator.itemgetter(*places) if places else lambda registers: ()
