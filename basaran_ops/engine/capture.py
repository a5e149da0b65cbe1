"""What a device is told to do by a function, captured once and replayed: CUDA's graphs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .weights import first_line

aten = torch.ops.aten

WARM_UPS = 2

Replay = Callable[[], torch.Tensor]


class CannotCapture(Exception):
    """A decode step of this model is not the same operations every time."""


class GraphBackend(Protocol):
    """Captures what a function does on a device."""

    def capture(self, function: Replay) -> Replay:
        """What does the same with what is in the same tensors by then, and returns the same tensor."""
        ...


class CudaGraphs:
    """CUDA's graphs, all of which share a pool of memory: only one of them runs, and its result is used up
    before the next one does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Replay) -> Replay:
        """As `GraphBackend`."""
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            # Libraries choose kernels and allocate workspaces in their first calls, which no graph may hold.
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    function()
            before.wait_stream(self._stream)
            try:
                return self._captured(function)
            except Exception as error:
                # The end of a broken capture raises too, and says less than what broke it.
                cause = error.__context__
                raise CannotCapture(first_line(cause if isinstance(cause, Exception) else error)) from error
            finally:
                # Which the end of a broken capture does not do.
                torch.cuda.set_stream(before)

    def _captured(self, function: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads of a library's user may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = function()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def backend_for(devices: Collection[torch.device]) -> GraphBackend | None:
    """None where there are no graphs: off CUDA, and for a model that is spread over several GPUs."""
    (device, *others) = devices
    return CudaGraphs(device) if device.type == "cuda" and not others else None


class SameEveryTime(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises CannotCapture where a pass asks for a value, or moves one: what follows may depend on it, as
    in mixtures of experts that look which expert has any token.
    """

    ASKING = frozenset(
        {
            aten._local_scalar_dense,  # noqa: SLF001 - what item() and bool() call
            aten.nonzero,
            aten.masked_select,
            aten.bincount,
            aten.equal,
            aten._unique2,  # noqa: SLF001
        }
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in self.ASKING or _picks_by_mask(func, args) or _moves(func, args, kwargs):
            raise CannotCapture(f"it asks for values on the way ({func})")
        # In inference mode an operation that is made of others, such as item(), comes as a whole.
        with self:
            result = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _picks_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    if func.overloadpacket is not aten.index:
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _moves(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func.overloadpacket is aten.copy_:
        return bool(args[0].device != args[1].device)
    to = kwargs.get("device") if func.overloadpacket is aten._to_copy else None  # noqa: SLF001
    return to is not None and to.type != args[0].device.type
