"""A model's forward pass as a flat list of operations, recorded once and fused.

Python's way through a transformers model costs as much as the arithmetic where few tokens pass. What the
forward does is recorded as a graph of tensor operations, `fusion` joins those that belong together, and
`CompiledForward` calls them one after the other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from transformers import PreTrainedModel

from . import fusion
from .attention import SlotAttention
from .forward import PanelLinear, Program
from .linear import PackedLinear
from .recording import GraphUnfit, attribute, record_forward
from .recording_file import RecordingFile
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


def record(
    model: PreTrainedModel,
    attention: SlotAttention,
    *,
    int8: bool = False,
    kept: RecordingFile | None = None,
) -> CompiledForward:
    """Record, fuse and bind the forward of a model whose attention is `attention`; `int8`: with its linear
    layers in 8 bits, where that can be done; `kept`: where the recording is from another start, or goes.

    Raises GraphUnfit where the forward cannot be recorded or bound.
    """
    recording = kept.read(model) if kept else None
    if recording is None:
        recording = record_forward(model, attention)
        if kept:
            kept.write(recording, model)
    attention.calls = recording.calls
    try:
        fusion.fuse(recording.module, attention, int8=int8)
    except Exception as error:
        raise GraphUnfit(f"{type(error).__name__}: {first_line(error)}") from error
    return CompiledForward(recording.module)


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
                places[node] = self._place(attribute(module, str(node.target)))
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
