"""A model's forward pass, recorded as a graph of tensor operations.

It is recorded twice, for few tokens and for many: what differs is what follows their number, and becomes a
node of its own. Everything else is the same in every pass, or the forward cannot be recorded.
"""

from __future__ import annotations

import linecache
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from .attention import LayerCall, SlotAttention
from .weights import first_line


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


@dataclass(frozen=True, slots=True)
class Recording:
    """What a forward does, before anything of it is fused or bound."""

    module: fx.GraphModule
    """Takes ids and positions [1, T] and the rows [R] that get logits; each node has the example tensor that
    the recorder saw as `meta["val"]`."""
    calls: Sequence[LayerCall]
    """What its calls of attention ask for, by the number that each has in the graph."""


def record_forward(model: PreTrainedModel, attention: SlotAttention) -> Recording:
    """Record the forward of a model whose attention is `attention`.

    One at a time in a process: the recorder has one place for its mode.

    Raises GraphUnfit where the forward depends on its input by more than the number of tokens and rows.
    """
    try:
        module, larger = (_recorded_at(sizes, model, attention) for sizes in (SMALL, LARGE))
        generalize(module, larger)
    except GraphUnfit:
        raise
    except Exception as error:
        # Whatever a model's own code, or the recorder, raises where a value decides the way.
        raise GraphUnfit(f"{type(error).__name__}: {first_line(error)}") from error
    return Recording(module, attention.calls)


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
    forget_source(module)
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


def forget_source(module: fx.GraphModule) -> None:
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
    ours, theirs = attribute(module, name), attribute(larger, name)
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


def attribute(module: fx.GraphModule, name: str) -> Any:
    """What a node that gets an attribute stands for."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
