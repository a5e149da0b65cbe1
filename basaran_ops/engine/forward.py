"""Runs of a recorded forward's operations as one call into C: norms, products, rotations, attention, gates.

In bfloat16 on a CPU with AVX-512's instructions for it. What a run is made of lies in memory by token, so
that views and transpositions between its operations cost nothing; threads are started once a run, not once
an operation, and weights are read in the order in which they lie. Everything else stays a torch operation.
"""

from __future__ import annotations

import importlib
import operator
import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import fx

from . import kernels
from .attention import BoundAttention, SlotAttention

aten = torch.ops.aten

Node = Any
"""An fx.Node; what its arguments may be is a union of everything, which no check of types can follow."""

NORM, LINEAR, ROTATE, ATTENTION, GATE, ADD, ROWS, QUANTIZE, LINEAR8 = range(9)
SILU, GELU_TANH = range(2)
FIELDS = 24
PANEL = 32
"""Outputs that lie together in a packed weight."""

MOST_DIM = 256
MOST_QUERIES = 192
"""Limits of the compiled attention: columns of a head, and query heads of a key head."""

ALIGNMENT = 64
SHORTEST = 3
"""Operations that are worth a call."""


def _load() -> Any:
    try:
        module = importlib.import_module("basaran_ops.engine._forward")
    except ImportError:
        return None
    return module if module.supported() else None


_forward = _load()

available: bool = _forward is not None and not torch.cpu._is_amx_tile_supported()  # noqa: SLF001
"""Whether runs are compiled here. Where the processor has AMX, oneDNN multiplies large batches faster."""


def multiplies_bytes() -> bool:
    """Whether a run's linear layers may be `Int8Linear`, given that runs are compiled here."""
    return bool(_forward.multiplies_bytes())


def takes(weight: torch.Tensor) -> bool:
    """Whether a linear layer with such a weight [outputs, inputs] can be part of a run."""
    return (
        available
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.shape[1] % 2 == 0
    )


class PanelLinear:
    """x @ cat(weights).T + cat(biases), with weights in panels of 32 outputs: several layers that read the
    same x are one product.
    """

    __name__ = "panel_linear"

    kind = LINEAR

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> None:
        """Weights [outputs, inputs], bfloat16; biases [outputs], as many or none."""
        self.weights = tuple(weights)
        """The weights as they were; what holds them may let them go."""
        self.sizes = [weight.shape[0] for weight in weights]
        self.elements = sum(weight.numel() for weight in weights)
        """Numbers that a product reads, without the biases."""
        self.inputs = weights[0].shape[1]
        self.outputs = sum(self.sizes)
        self.packed = self.pack(_pieces([weight.detach() for weight in weights]))
        self.bias = torch.cat([bias.detach() for bias in biases]).float() if biases else None
        x, out, rounded = (
            _Matrix(place, 0, n, (1, 1, n))
            for place, n in enumerate((self.inputs, self.outputs, self.row_width))
        )
        self._alone = b"".join(
            operation.packed({0: 0, 1: 1, 2: 2}) for operation in self.operations(x, out, rounded)
        )

    @property
    def row_width(self) -> int:
        """Of a row as it is multiplied, in numbers of bfloat16; 0: as it comes."""
        return 0

    @property
    def steps(self) -> int:
        """Pairs of inputs: a product's steps, each of which takes them from all the outputs of a panel."""
        return self.inputs // 2

    def pack(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Weights [outputs, inputs] in panels; each piece but the last fills its own."""
        packed = torch.empty(_rounded(self.outputs, PANEL), self.inputs, dtype=torch.bfloat16)
        first = 0
        for piece in pieces:
            _forward.pack(piece.data_ptr(), packed[first].data_ptr(), *piece.shape)
            first += len(piece)
        return packed

    def operations(self, x: _Matrix, out: _Matrix, rounded: _Matrix) -> list[_Operation]:
        """What the product is made of; `rounded` is a place for rows of `row_width`."""
        bias = 0 if self.bias is None else self.bias.data_ptr()
        fields = self.packed.data_ptr(), bias, self.steps, self.outputs, int(out.wide)
        if not self.row_width:
            return [_Operation(self.kind, (x,), (out,), fields)]
        return [
            _Operation(QUANTIZE, (x,), (rounded,), (self.inputs,)),
            _Operation(self.kind, (rounded,), (out,), fields),
        ]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., inputs] -> [..., outputs of all]."""
        rows = x.reshape(-1, self.inputs).contiguous()
        out = torch.empty(*x.shape[:-1], self.outputs, dtype=torch.bfloat16)
        rounded = torch.empty(rows.shape[0], self.row_width, dtype=torch.bfloat16)
        places = array("q", [rows.data_ptr(), out.data_ptr(), rounded.data_ptr()])
        _call(self._alone, places, tokens=rows.shape[0])
        return out

    def split(self, whole: torch.Tensor) -> Sequence[torch.Tensor]:
        """The output of each layer, as views."""
        return torch.split(whole, self.sizes, dim=-1)


def _pieces(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The weights, as one where their outputs would share a panel: that takes a copy."""
    whole = all(len(weight) % PANEL == 0 for weight in weights[:-1])
    return [weight.contiguous() for weight in (weights if whole else [torch.cat(list(weights))])]


def gelu_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up, by tanh (Hendrycks and Gimpel 2016), both [1, T, width] -> [1, T, width]."""
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def lower(module: fx.GraphModule, attention: SlotAttention) -> None:
    """Replace every run of operations that C knows by one call, in place."""
    graph = module.graph
    run = _Run(module, attention)
    for node in list(graph.nodes):
        if node.op == "output":
            _close(run, node)
        elif node.op == "call_function" and not run.take(node) and (run.is_read_by(node) or writes(node)):
            _close(run, node)
            run = _Run(module, attention)
            run.take(node)
    graph.eliminate_dead_code()


def writes(node: Node) -> bool:
    """Whether an operation changes one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001


def _close(run: _Run, before: Node) -> None:
    """Put the call in the place of the run's nodes, ahead of the first node that reads them otherwise."""
    if run.length < SHORTEST:
        return
    graph = before.graph
    program = run.program()
    with graph.inserting_before(before):
        call = graph.call_function(program, tuple(run.externals))
        for number, node in enumerate(run.results):
            result = graph.call_function(operator.getitem, (call, number))
            result.meta["val"] = node.meta.get("val")
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in run.values)


# -- what a run is made of ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Matrix:
    """A value of a run: columns of a matrix that has a row for each token, or for each row of logits."""

    place: int
    offset: int
    stride: int
    shape: tuple[int, ...]
    """As the recording has it; [1, T, width], [1, T, heads, dim] or, with `by_head`, [1, heads, T, dim]."""
    of_rows: bool = False
    by_head: bool = False
    wide: bool = False

    @property
    def heads(self) -> int:
        return 1 if len(self.shape) == 3 else self.shape[1 if self.by_head else 2]

    @property
    def dim(self) -> int:
        return self.shape[-1]

    @property
    def width(self) -> int:
        return self.heads * self.dim

    def tensor(self, whole: torch.Tensor) -> torch.Tensor:
        """A view of the matrix [rows, stride] that it lies in, in the shape that the graph knows."""
        value = whole[None, :, self.offset : self.offset + self.width]
        if len(self.shape) == 3:
            return value
        split = value.view(*value.shape[:2], self.heads, self.dim)
        return split.transpose(1, 2) if self.by_head else split


@dataclass(slots=True)
class _Place:
    """Memory for a matrix, which several values of a run have one after the other."""

    width: int
    of_rows: bool
    wide: bool = False
    external: bool = False


class _Operation(NamedTuple):
    """Reads and writes matrices; its fields in C are these, in this order, and then `fields`."""

    kind: int
    reads: tuple[_Matrix | None, ...]
    writes: tuple[_Matrix | None, ...]
    fields: tuple[int, ...]
    numbers: tuple[float, ...] = ()

    @property
    def of_rows(self) -> bool:
        out = self.writes[0]
        return out is not None and out.of_rows

    def packed(self, places: Mapping[int, int]) -> bytes:
        """As C reads it; `places` holds where each place of the run has come to be."""
        fields: list[int] = []
        for matrix in self.reads + self.writes:
            fields += (-1, 0, 0) if matrix is None else (places[matrix.place], matrix.offset, matrix.stride)
        fields += self.fields
        numbers = self.numbers + (0.0,) * (3 - len(self.numbers))
        padding = (0,) * (FIELDS - len(fields))
        return struct.pack(f"<{FIELDS + 2}q3d", self.kind, int(self.of_rows), *fields, *padding, *numbers)


class _Run:
    """Collects neighbouring nodes of a graph, as operations over numbered places."""

    def __init__(self, module: fx.GraphModule, attention: SlotAttention) -> None:
        self._module = module
        self._attention = attention
        self.values: dict[Node, Any] = {}
        """A matrix for each node, or several for one whose result is a tuple."""
        self.externals: list[Node] = []
        self.linears: list[PanelLinear] = []
        self._places: list[_Place] = []
        self._operations: list[_Operation] = []
        self._kept: list[Any] = []
        ids, _, rows = (node for node in module.graph.nodes if node.op == "placeholder")
        self._wanted = rows
        self._lengths = {ids.meta["val"].shape[1]: False, rows.meta["val"].shape[0]: True}
        """Whether a matrix of so many rows has one for each wanted row of logits, in the recording."""
        self._lowerings: dict[Any, Callable[[Node], bool]] = {
            kernels.rms_norm: self._norm,
            kernels.add_rms_norm: self._add_norm,
            kernels.rotate: self._rotate,
            kernels.silu_gate: lambda node: self._gate(node, SILU),
            gelu_gate: lambda node: self._gate(node, GELU_TANH),
            aten.add.Tensor: self._add,
            aten.index.Tensor: self._pick,
            aten.view.default: self._view,
            aten.reshape.default: self._view,
            aten._unsafe_view.default: self._view,  # noqa: SLF001
            aten.transpose.int: self._transpose,
            operator.getitem: self._item,
        }

    @property
    def length(self) -> int:
        return len(self._operations)

    @property
    def results(self) -> list[Node]:
        """The nodes that something outside of the run reads."""
        return [
            node
            for node, value in self.values.items()
            if isinstance(value, _Matrix)
            and node not in self.externals
            and any(user not in self.values for user in node.users)
        ]

    def is_read_by(self, node: Node) -> bool:
        """Whether the node reads a value of the run."""
        return any(source in self.values and source not in self.externals for source in node.all_input_nodes)

    def take(self, node: Node) -> bool:
        """Make the node part of the run, if that can be done."""
        places, externals = len(self._places), len(self.externals)
        lowering = self._lowering(node)
        if lowering is not None and lowering(node):
            return True
        for external in self.externals[externals:]:
            del self.values[external]
        del self.externals[externals:], self._places[places:]
        return False

    def _lowering(self, node: Node) -> Callable[[Node], bool] | None:
        if isinstance(node.target, PanelLinear):
            return self._linear
        if isinstance(node.target, BoundAttention):
            return self._attend
        if isinstance(getattr(node.target, "__self__", None), PanelLinear):
            return self._split
        return self._lowerings.get(node.target)

    # -- places ------------------------------------------------------------------------------------------

    def _matrix(self, node: Any) -> _Matrix | None:
        """The node's value: of the run, or from outside where it is of a kind that a run can read."""
        if node in self.values:
            value = self.values[node]
            return value if isinstance(value, _Matrix) else None
        example = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(example, torch.Tensor) or node.op == "get_attr":
            return None
        if example.dtype != torch.bfloat16 or example.dim() != 3 or example.shape[0] != 1:
            return None
        if example.shape[1] not in self._lengths:
            return None
        of_rows = self._lengths[example.shape[1]]
        matrix = self._new(example.shape[2], tuple(example.shape), of_rows=of_rows, external=True)
        self.values[node] = matrix
        self.externals.append(node)
        return matrix

    def _matrices(self, *nodes: Any) -> list[_Matrix] | None:
        found = [self._matrix(node) for node in nodes]
        return None if None in found else found  # type: ignore[return-value]

    def _new(self, width: int, shape: tuple[int, ...], *, of_rows: bool = False, **kinds: Any) -> _Matrix:
        self._places.append(_Place(width, of_rows, **kinds))
        return _Matrix(len(self._places) - 1, 0, width, shape, of_rows, wide=kinds.get("wide", False))

    def _emit(
        self,
        kind: int,
        reads: Sequence[_Matrix | None],
        writes: Sequence[_Matrix | None],
        *fields: int,
        numbers: tuple[float, ...] = (),
    ) -> bool:
        self._operations.append(_Operation(kind, tuple(reads), tuple(writes), fields, numbers))
        return True

    # -- lowering ----------------------------------------------------------------------------------------

    def _norm(self, node: Node) -> bool:
        x, weight = self._matrix(node.args[0]), self._held(node.args[1])
        if x is None or x.wide:
            return False
        out = self._new(x.width, x.shape, of_rows=x.of_rows)
        out.by_head = x.by_head
        self.values[node] = out
        fields = (weight.data_ptr(), x.dim, x.heads)
        return self._emit(NORM, (x, None), (out, None), *fields, numbers=(node.args[2],))

    def _add_norm(self, node: Node) -> bool:
        found = self._matrices(node.args[0], node.args[1])
        if found is None or found[0].shape != found[1].shape or len(found[0].shape) != 3:
            return False
        x, residual = found
        weight = self._held(node.args[2])
        out, total = (self._new(x.width, x.shape, of_rows=x.of_rows) for _ in range(2))
        self.values[node] = (out, total)
        fields = (weight.data_ptr(), x.dim, 1)
        return self._emit(NORM, (x, residual), (out, total), *fields, numbers=(node.args[3],))

    def _held(self, node: Node) -> torch.Tensor:
        value = getattr(self._module, str(node.target))
        assert isinstance(value, torch.Tensor)
        self._kept.append(value)
        return value

    def _linear(self, node: Node) -> bool:
        x, layer = self._matrix(node.args[0]), node.target
        if x is None or len(x.shape) != 3 or x.width != layer.inputs:
            return False
        users = list(node.users)
        wide = len(users) == 1 and users[0].op == "output"
        shape = (*x.shape[:2], layer.outputs)
        out = self.values[node] = self._new(layer.outputs, shape, of_rows=x.of_rows, wide=wide)
        rounded = self._new(layer.row_width, (*x.shape[:2], layer.row_width), of_rows=x.of_rows)
        self.linears.append(layer)
        self._operations += layer.operations(x, out, rounded)
        return True

    def _split(self, node: Node) -> bool:
        whole = self.values.get(node.args[0])
        if not isinstance(whole, _Matrix):
            return False
        parts, offset = [], whole.offset
        for size in node.target.__self__.sizes:
            shape = (*whole.shape[:2], size)
            parts.append(_Matrix(whole.place, offset, whole.stride, shape, whole.of_rows))
            offset += size
        self.values[node] = tuple(parts)
        return True

    def _item(self, node: Node) -> bool:
        value = self.values.get(node.args[0])
        if not isinstance(value, tuple):
            return False
        self.values[node] = value[node.args[1]]
        return True

    def _view(self, node: Node) -> bool:
        x = self.values.get(node.args[0])
        sizes = node.args[1]
        if not isinstance(x, _Matrix) or x.by_head or x.of_rows or x.wide or sizes[0] != 1:
            return False
        inner = list(sizes[2:])
        if len(inner) not in (1, 2) or not all(isinstance(size, int) for size in inner):
            return False
        # The second size is the number of tokens, whatever it is: the rest must be what a token has.
        known = prod(size for size in inner if size != -1)
        inner = [x.width // known if size == -1 else size for size in inner]
        if prod(inner) != x.width or not isinstance(sizes[1], fx.Node):
            return False
        self.values[node] = _Matrix(x.place, x.offset, x.stride, (*x.shape[:2], *inner))
        return True

    def _transpose(self, node: Node) -> bool:
        x = self.values.get(node.args[0])
        if not isinstance(x, _Matrix) or len(x.shape) != 4 or {*node.args[1:]} != {1, 2}:
            return False
        shape = (x.shape[0], x.shape[2], x.shape[1], x.shape[3])
        self.values[node] = _Matrix(x.place, x.offset, x.stride, shape, by_head=not x.by_head)
        return True

    def _rotate(self, node: Node) -> bool:
        x = self.values.get(node.args[0])
        if not isinstance(x, _Matrix) or not x.by_head:
            return False
        tables = self._matrices(*node.args[1:])
        if tables is None or any(table.shape[-1] != x.dim for table in tables):
            return False
        out = self.values[node] = self._new(x.width, x.shape)
        out.by_head = True
        return self._emit(ROTATE, (x, *tables), (out,), x.heads, x.dim)

    def _attend(self, node: Node) -> bool:
        found: list[_Matrix | None] = [self.values.get(argument) for argument in node.args]
        cache, call = self._attention.cache, node.target.call
        if not all(x is not None and x.by_head for x in found) or cache is None:
            return False
        query, key, value = (x for x in found if x is not None)
        keys, values = cache.keys[call.layer], cache.values[call.layer]
        kernel = call.kernel
        if not _fits(query, key, value, keys, values):
            return False
        sinks = None if kernel.sinks is None else kernel.sinks.detach().float().contiguous()
        self._kept += [keys, values, sinks]
        shape = (*key.shape[:1], query.shape[2], query.heads, value.dim)
        out = self.values[node] = self._new(query.heads * value.dim, shape)
        return self._emit(
            ATTENTION,
            (query, key, value),
            (out,),
            keys.data_ptr(),
            values.data_ptr(),
            0 if sinks is None else sinks.data_ptr(),
            query.heads,
            key.heads,
            query.dim,
            value.dim,
            cache.max_length,
            call.window or 0,
            numbers=(kernel.scale, kernel.softcap or 0.0),
        )

    def _gate(self, node: Node, activation: int) -> bool:
        gate, up = (self.values.get(argument) for argument in node.args)
        if not isinstance(gate, _Matrix) or not isinstance(up, _Matrix):
            return False
        out = self.values[node] = self._new(gate.width, gate.shape, of_rows=gate.of_rows)
        return self._emit(GATE, (gate, up), (out,), gate.width, activation)

    def _add(self, node: Node) -> bool:
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            return False
        found = self._matrices(*node.args)
        if found is None or found[0].shape != found[1].shape or found[0].wide or len(found[0].shape) != 3:
            return False
        left, right = found
        out = self.values[node] = self._new(left.width, left.shape, of_rows=left.of_rows)
        return self._emit(ADD, (left, right), (out,), left.width)

    def _pick(self, node: Node) -> bool:
        source, indices = node.args
        x = self.values.get(source)
        if not isinstance(x, _Matrix) or len(x.shape) != 3 or len(indices) != 2 or indices[0] is not None:
            return False
        if indices[1] is not self._wanted or x.of_rows:
            return False
        out = self.values[node] = self._new(x.width, tuple(node.meta["val"].shape), of_rows=True)
        return self._emit(ROWS, (x,), (out,), x.width)

    # -- the program -------------------------------------------------------------------------------------

    def program(self) -> Program:
        """The run as it is now."""
        results = [self.values[node] for node in self.results]
        outer = [place for place, known in enumerate(self._places) if known.external]
        outer += dict.fromkeys(result.place for result in results)
        homes = {place: number for number, place in enumerate(outer)}
        inner = self._share(homes)
        packed = b"".join(operation.packed(homes) for operation in self._operations)
        made = [self._places[place] for place in outer[len(self.externals) :]]
        tensors = [(homes[result.place] - len(self.externals), result) for result in results]
        kept = (*self._kept, *self.linears)
        return Program(packed, self._attention, inner, made, tensors, self.linears, kept)

    def _share(self, homes: dict[int, int]) -> list[_Place]:
        """Give the places that nothing outside sees homes, in turns, and return those.

        Only such of one width and one number of rows take turns: a thread's rows then lie where its rows lay,
        and it need not wait for others to be done with theirs.
        """
        last = {
            matrix.place: index
            for index, operation in enumerate(self._operations)
            for matrix in operation.reads + operation.writes
            if matrix is not None
        }
        inner: list[_Place] = []
        free: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        first = len(homes)
        shared = set()
        for index, operation in enumerate(self._operations):
            for matrix in operation.writes:
                if matrix is None or matrix.place in homes:
                    continue
                place = self._places[matrix.place]
                homes_of_kind = free[place.width, place.of_rows, place.wide]
                if not homes_of_kind:
                    homes_of_kind.append(first + len(inner))
                    inner.append(place)
                homes[matrix.place] = homes_of_kind.pop()
                shared.add(matrix.place)
            used = {matrix.place for matrix in operation.reads + operation.writes if matrix is not None}
            for number in used & shared:
                if last[number] == index:
                    place = self._places[number]
                    free[place.width, place.of_rows, place.wide].append(homes[number])
        return inner


def _fits(query: _Matrix, key: _Matrix, value: _Matrix, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the compiled attention takes these."""
    if query.heads % key.heads or key.heads != value.heads or query.dim != key.dim:
        return False
    if any(dim % 32 or dim > MOST_DIM for dim in (query.dim, value.dim)):
        return False
    caches = all(
        t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous() for t in (keys, values)
    )
    return caches and query.heads // key.heads <= MOST_QUERIES


# -- calls -------------------------------------------------------------------------------------------------


class Program:
    """A run, ready to be called with the values that it reads from outside."""

    __name__ = "run"

    def __init__(
        self,
        operations: bytes,
        attention: SlotAttention,
        inner: Sequence[_Place],
        made: Sequence[_Place],
        results: Sequence[tuple[int, _Matrix]],
        linears: Sequence[PanelLinear],
        kept: tuple[Any, ...],
    ) -> None:
        """`inner`: places that only the run sees; `made`: those of its results, each of which is a view of
        the place of this number; `kept`: what the operations have addresses of.
        """
        self._operations = operations
        self._attention = attention
        self._inner = inner
        self._made = made
        self._results = results
        self._kept = kept
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.linears = linears
        self.profile: array[int] | None = None
        """Where nanoseconds of each kind of operation are added, if they are asked for."""

    @property
    def size(self) -> int:
        """How many operations a call is."""
        return len(self._operations) // (8 * (FIELDS + 5))

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs [1, T, width], bfloat16 -> what the run's results are in the graph."""
        plan = self._attention.plan
        assert plan is not None
        tokens, rows = len(plan.write_slots), len(plan.logit_rows)
        held = [x.contiguous() for x in inputs]
        made = [
            torch.empty(
                rows if place.of_rows else tokens,
                place.width,
                dtype=torch.float32 if place.wide else torch.bfloat16,
            )
            for place in self._made
        ]
        places = array("q", [tensor.data_ptr() for tensor in held + made])
        places.extend(self._inner_places(tokens, rows))
        chunks = plan.chunk_rows
        _call(
            self._operations,
            places,
            tokens,
            rows,
            plan.single,
            plan.write_slots.data_ptr(),
            plan.write_positions.data_ptr(),
            chunks.buffer_info()[0],
            len(chunks) // 2,
            plan.logit_rows.data_ptr(),
            self.profile,
        )
        return tuple(matrix.tensor(made[number]) for number, matrix in self._results)

    def _inner_places(self, tokens: int, rows: int) -> list[int]:
        offsets, end = [], 0
        for place in self._inner:
            offsets.append(end)
            size = (rows if place.of_rows else tokens) * place.width * (4 if place.wide else 2)
            end += _rounded(size, ALIGNMENT)
        if self._memory.numel() < end:
            self._memory = torch.empty(end, dtype=torch.uint8)
        base = self._memory.data_ptr()
        return [base + offset for offset in offsets]


def _call(
    operations: bytes,
    places: array[int],
    tokens: int,
    rows: int = 0,
    decodes: int = 0,
    slots: int = 0,
    positions: int = 0,
    chunks: int = 0,
    chunk_count: int = 0,
    row_ids: int = 0,
    profile: array[int] | None = None,
) -> None:
    _forward.run(
        operations,
        places.buffer_info()[0],
        tokens,
        rows,
        decodes,
        slots,
        positions,
        chunks,
        chunk_count,
        row_ids,
        torch.get_num_threads(),
        0 if profile is None else profile.buffer_info()[0],
    )


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to
