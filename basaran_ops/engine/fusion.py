"""Joins operations of a recorded forward that are one operation in a model's terms.

Each function finds one pattern and leaves what does not fit as it is. Nodes carry the example tensor that
the recorder saw as `meta["val"]`.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from . import forward, kernels
from . import int8 as eight_bits
from .attention import SLOT_ATTENTION, SlotAttention
from .forward import PanelLinear
from .int8 import Int8Linear
from .linear import PackedLinear, packs

aten = torch.ops.aten

Node = Any
"""An fx.Node; what its arguments may be is a union of everything, which no check of types can follow."""


def fuse(module: fx.GraphModule, attention: SlotAttention, *, int8: bool = False) -> None:
    """Apply every fusion, in place. `int8`: round linear layers to 8 bits, where that can be done."""
    graph = module.graph
    _drop_idle(graph)
    _fold_constants(module)
    _bind_attention(graph, attention)
    if kernels.available:
        _fuse_rotations(graph)
        _fuse_norms(module)
        _fuse_gates(graph)
    _pack_linears(module, int8=int8)
    _pick_rows_early(graph)
    if forward.available:
        forward.lower(module, attention)
    graph.eliminate_dead_code()


# -- what a node is --------------------------------------------------------------------------------------


def _is(value: Any, *targets: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target in targets


def _value(node: Node) -> torch.Tensor:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else torch.empty(0)


def _constant(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor that a node stands for, if it is always the same."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = getattr(module, str(node.target))
    return value if isinstance(value, torch.Tensor) else None


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _operands(node: Node, *targets: Any) -> Iterator[tuple[Any, Any]]:
    """Both orders of a commutative operation's operands, if it is one of these."""
    if _is(node, *targets) and not node.kwargs and len(node.args) == 2:
        yield node.args[0], node.args[1]
        yield node.args[1], node.args[0]


def _call(graph: fx.Graph, before: Node, function: Any, *args: Any, like: Node | None = None) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(function, args)
    if like is not None:
        node.meta["val"] = like.meta["val"]
    return node


# -- tidying ---------------------------------------------------------------------------------------------


def _drop_idle(graph: fx.Graph) -> None:
    """Take out what changes nothing: gradients' switches and conversions to the type at hand."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch._C._set_grad_enabled:  # noqa: SLF001
            graph.erase_node(node)
        elif _is(node, aten.to.dtype, aten.detach.default, aten.alias.default, aten.contiguous.default):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if node.target is aten.to.dtype and (len(node.args) > 2 or node.kwargs):
                continue  # a copy was asked for
            same = _value(node).dtype == _value(source).dtype
            if same and (node.target is not aten.contiguous.default or _value(source).is_contiguous()):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on weights alone, such as 1 + weight of Gemma's norms."""
    graph = module.graph
    # What is computed once must not be, or be made of, what every pass writes to.
    written = _behind([node for node in graph.nodes if forward.writes(node)])
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        sources = node.all_input_nodes
        if node in written or not sources:
            continue
        if any(source in written or _constant(module, source) is None for source in sources):
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: _constant(module, n))
        folded = _hold(module, node, node.target(*args, **kwargs))
        node.replace_all_uses_with(folded)
        graph.erase_node(node)


def _behind(nodes: list[Node]) -> set[Node]:
    """Everything that these are made of."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _hold(module: fx.GraphModule, before: Node, value: torch.Tensor) -> Node:
    name = f"held_{before.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


# -- attention -------------------------------------------------------------------------------------------


def _bind_attention(graph: fx.Graph, attention: SlotAttention) -> None:
    for node in list(graph.nodes):
        if _is(node, SLOT_ATTENTION):
            query, key, value, number = node.args
            bound = attention.bound(number)
            node.replace_all_uses_with(_call(graph, node, bound, query, key, value, like=node))
            graph.erase_node(node)


# -- norms -----------------------------------------------------------------------------------------------


def _fuse_norms(module: fx.GraphModule) -> None:
    """X * rsqrt(mean(x^2) + eps) * weight, with the conversions between, and the sum that x often is."""
    graph = module.graph
    for root in [node for node in graph.nodes if _is(node, aten.rsqrt.default)]:
        matched = _match_norm(module, root)
        if matched is None:
            continue
        x, weight, eps, last = matched
        total = x if _is_plain_sum(x) else None
        held = _hold(module, total or last, weight)
        if total is None:
            fused = _call(graph, last, kernels.rms_norm, x, held, eps, like=last)
        else:
            pair = _call(graph, total, kernels.add_rms_norm, *total.args, held, eps)
            fused = _call(graph, total, operator.getitem, pair, 0, like=last)
            total.replace_all_uses_with(_call(graph, total, operator.getitem, pair, 1, like=total))
        last.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def _match_norm(module: fx.GraphModule, root: Node) -> tuple[Node, torch.Tensor, float, Node] | None:
    """(x, weight, eps, the last node) of the norm around an rsqrt."""
    shifted = root.args[0]
    if not _is(shifted, aten.add.Tensor) or not isinstance(shifted.args[1], float):
        return None
    mean = shifted.args[0]
    if not _is(mean, aten.mean.dim) or tuple(mean.args[1:]) != ([-1], True):
        return None
    square = mean.args[0]
    if not _is(square, aten.pow.Tensor_Scalar) or square.args[1] != 2:
        return None
    wide = square.args[0]
    x = wide.args[0] if _is(wide, aten.to.dtype) else wide
    scaled = _only_user(root)
    if scaled is None or not any(a is wide for a, _ in _operands(scaled, aten.mul.Tensor)):
        return None
    found = _follow_norm(module, scaled, _value(x))
    if found is None or not kernels.supports(_value(x)):
        return None
    weight, last = found
    return x, weight.detach().float().contiguous(), shifted.args[1], last


def _follow_norm(module: fx.GraphModule, node: Node, x: torch.Tensor) -> tuple[torch.Tensor, Node] | None:
    """From the scaled x to where it has been multiplied by the weight and is of x's type again."""
    weight: torch.Tensor | None = None
    while weight is None or _value(node).dtype != x.dtype:
        user = _only_user(node)
        if user is None:
            return None
        if not _is(user, aten.to.dtype, aten.type_as.default):
            others = [b for a, b in _operands(user, aten.mul.Tensor) if a is node]
            factor = _constant(module, others[0]) if others else None
            if weight is not None or factor is None or factor.shape != x.shape[-1:]:
                return None
            weight = factor
        node = user
    return weight, node


def _is_plain_sum(node: Node) -> bool:
    """Whether it adds two tensors of one shape and type."""
    if not _is(node, aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    if not all(isinstance(a, fx.Node) for a in node.args):
        return False
    left, right = (_value(a) for a in node.args if isinstance(a, fx.Node))
    return left.shape == right.shape and left.dtype == right.dtype == _value(node).dtype


# -- rotary embeddings -----------------------------------------------------------------------------------


def _fuse_rotations(graph: fx.Graph) -> None:
    """X * cos + cat(-second half of x, first half) * sin."""
    for node in [node for node in graph.nodes if _is(node, aten.add.Tensor)]:
        for straight, crossed in _operands(node, aten.add.Tensor):
            if matched := _match_rotation(straight, crossed):
                node.replace_all_uses_with(_call(graph, node, kernels.rotate, *matched, like=node))
                break
    graph.eliminate_dead_code()


def _match_rotation(straight: Any, crossed: Any) -> tuple[Node, Node, Node] | None:
    """(x, cos, sin) of the two products."""
    for turned, wide_sin in _operands(crossed, aten.mul.Tensor):
        x = _turned_by(turned)
        if x is None:
            continue
        for same, wide_cos in _operands(straight, aten.mul.Tensor):
            cos, sin = _widened(wide_cos), _widened(wide_sin)
            if same is x and cos is not None and sin is not None and _fits_rotation(x, cos, sin):
                return x, cos, sin
    return None


def _turned_by(node: Any) -> Node | None:
    """The x of cat([-x[..., half:], x[..., :half]], -1)."""
    if not _is(node, aten.cat.default) or len(node.args[0]) != 2 or node.args[1:] not in ((-1,), (3,)):
        return None
    negative, first = node.args[0]
    if not _is(negative, aten.neg.default) or not _is(first, aten.slice.Tensor):
        return None
    second, x = negative.args[0], first.args[0]
    if not _is(second, aten.slice.Tensor) or second.args[0] is not x or not isinstance(x, fx.Node):
        return None
    dim = _value(x).shape[-1]
    halves = (first.args[1:4], second.args[1:3], second.args[3] >= dim)
    return x if halves == ((3, 0, dim // 2), (3, dim // 2), True) and dim % 2 == 0 else None


def _widened(node: Any) -> Node | None:
    """What was given a dimension for the heads."""
    if _is(node, aten.unsqueeze.default) and node.args[1] == 1:
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    return None


def _fits_rotation(x: Node, cos: Node, sin: Node) -> bool:
    values = _value(x), _value(cos), _value(sin)
    shapes = values[0].dim() == 4 and all(
        v.shape == values[0].shape[:1] + values[0].shape[2:] for v in values[1:]
    )
    return shapes and kernels.supports(values[0]) and len({v.dtype for v in values}) == 1


# -- gates -----------------------------------------------------------------------------------------------


def _fuse_gates(graph: fx.Graph) -> None:
    for node in [node for node in graph.nodes if _is(node, aten.mul.Tensor)]:
        for active, up in _operands(node, aten.mul.Tensor):
            gate = _gate_by(active)
            if gate is not None and _fits_gate(active.args[0], up):
                fused = _call(graph, node, gate, active.args[0], up, like=node)
                node.replace_all_uses_with(fused)
                break
    graph.eliminate_dead_code()


def _gate_by(active: Any) -> Any:
    """The fused gate of an activation, if there is one."""
    if _is(active, aten.silu.default):
        return kernels.silu_gate
    tanh = _is(active, aten.gelu.default) and active.kwargs.get("approximate") == "tanh"
    return forward.gelu_gate if tanh and forward.available else None


def _fits_gate(gate: Node, up: Any) -> bool:
    """Whether both are whole outputs of linear layers, whose columns lie side by side."""
    if not _is(gate, aten.linear.default) or not _is(up, aten.linear.default):
        return False
    return (
        _value(gate).dim() == 3 and _value(gate).shape == _value(up).shape and kernels.supports(_value(gate))
    )


# -- linear layers ---------------------------------------------------------------------------------------


def layer_for(weights: Sequence[torch.Tensor], *, int8: bool) -> type[PackedLinear | PanelLinear]:
    """The linear layer for weights that are multiplied at once."""
    if int8 and all(map(eight_bits.takes, weights)):
        return Int8Linear
    return PanelLinear if all(map(forward.takes, weights)) else PackedLinear


def _pack_linears(module: fx.GraphModule, *, int8: bool) -> None:
    """Linear layers that read the same tensor become one, and weights are laid out for the processor."""
    graph = module.graph
    readers: dict[tuple[Any, bool], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if _is(node, aten.linear.default) and _packable(module, node):
            readers[node.args[0], len(node.args) > 2].append(node)
    for (source, _), nodes in readers.items():
        weights, *biases = zip(*(_constants(module, node) for node in nodes), strict=True)
        packed = layer_for(weights, int8=int8)(weights, biases[0] if biases else ())
        whole = _call(graph, nodes[0], packed, source)
        if len(nodes) == 1:
            whole.meta["val"] = nodes[0].meta["val"]
            nodes[0].replace_all_uses_with(whole)
        else:
            parts = _call(graph, nodes[0], packed.split, whole)
            for number, node in enumerate(nodes):
                node.replace_all_uses_with(_call(graph, nodes[0], operator.getitem, parts, number, like=node))
    graph.eliminate_dead_code()


def _packable(module: fx.GraphModule, node: Node) -> bool:
    source, constants = node.args[0], _constants(module, node)
    return (
        isinstance(source, fx.Node)
        and not node.kwargs
        and len(constants) == len(node.args) - 1
        and all(packs(c) and c.dtype == _value(source).dtype for c in constants)
    )


def _constants(module: fx.GraphModule, node: Node) -> list[torch.Tensor]:
    """A linear layer's weight, and its bias if it has one, as far as they are constants."""
    found = (_constant(module, argument) for argument in node.args[1:])
    return [constant for constant in found if constant is not None]


# -- wanted rows -----------------------------------------------------------------------------------------

ROW_WISE = (kernels.rms_norm, kernels.add_rms_norm, kernels.silu_gate, forward.gelu_gate, operator.getitem)
"""Functions that compute each token's row of a result from its rows of the arguments alone."""


def _pick_rows_early(graph: fx.Graph) -> None:
    """Compute the last layer's feed-forward network, and what follows it, for wanted rows alone."""
    rows = next(node for node in graph.nodes if node.op == "placeholder" and node.name.startswith("rows"))
    for pick in [node for node in graph.nodes if _picks(node, rows)]:
        if late := _only_for(pick):
            _move_ahead(pick, rows, late)
    graph.eliminate_dead_code()


def _move_ahead(pick: Node, rows: Node, late: list[Node]) -> None:
    """Pick from what the nodes `late`, in order, read, instead of from what they make."""
    graph = pick.graph
    picked: dict[Node, Node] = {}

    def seen(like: Node) -> torch.Tensor:
        return _value(like)[:, : _value(pick).shape[1]]

    for node in late:
        for source in node.all_input_nodes:
            if source not in picked and source.op == "call_function":
                early = picked[source] = _call(graph, node, aten.index.Tensor, source, [None, rows])
                early.meta["val"] = seen(source)
        with graph.inserting_before(node):
            copy = picked[node] = graph.node_copy(node, lambda source: picked.get(source, source))
        if isinstance(node.meta.get("val"), torch.Tensor):
            copy.meta["val"] = seen(node)
    pick.replace_all_uses_with(picked[pick.args[0]])


def _picks(node: Node, rows: Node) -> bool:
    if not _is(node, aten.index.Tensor) or _value(node).dim() != 3:
        return False
    return list(node.args[1]) == [None, rows]


def _only_for(pick: Node) -> list[Node]:
    """The nodes, in order, that work row by row and whose results nothing else reads."""
    found: list[Node] = []
    for node in reversed(list(pick.graph.nodes)):
        if node.users and all(user is pick or user in found for user in node.users) and _is_row_wise(node):
            found.append(node)
    # Of a tuple that others read too, its part is what is picked from.
    return [node for node in found[::-1] if node.target is not operator.getitem or node.args[0] in found]


def _is_row_wise(node: Node) -> bool:
    target = node.target
    if node.op != "call_function" or _value(node).dim() not in (0, 1, 3):
        return False
    if isinstance(getattr(target, "__self__", target), (PackedLinear, PanelLinear)):
        return True
    sums = _is(node, aten.add.Tensor) and all(_value(a).dim() == 3 for a in node.args)
    return target in ROW_WISE or sums
