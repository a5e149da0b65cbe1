"""Recordings of forwards on disk, from one start to the next: recording takes as long as loading does.

A file is a safetensors file, which carries no code: the graph is JSON in its metadata, weights are in it by
their names, and only tensors that belong to no module are in it as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from transformers import PreTrainedModel

from . import attention as slot_attention
from . import recording as recorder
from .attention import Kernel, LayerCall
from .recording import Recording, attribute

log = logging.getLogger(__name__)

FEWEST_NODES = 1000
"""What has fewer is recorded in a fraction of a second."""
MOST_FILES = 32
"""What has not been used for the longest goes first."""
MOST_BYTES = 2**24
"""Of tensors in a file: what is longer is made again faster than it is read."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "mul": operator.mul,
    "size": torch.Tensor.size,
    "set_grad_enabled": torch._C._set_grad_enabled,  # noqa: SLF001 - what the recorder writes
}
"""Of Python, that a graph may call beside torch's operations."""
NAMES = {function: name for name, function in FUNCTIONS.items()}

KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
"""Arguments that are a name in torch."""


class NotKept(Exception):
    """A graph has something that a file cannot say."""


class RecordingFile:
    """Where the recording of one model's forward is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.was_read = False
        """Whether the last recording came from the file."""

    @classmethod
    def of(cls, model: PreTrainedModel, source: Path, directory: Path) -> RecordingFile:
        """The file in `directory` for a model that was loaded from `source`: another one after whatever may
        change what its forward does.
        """
        module = sys.modules[type(model).__module__]
        code = [module.__file__, recorder.__file__, slot_attention.__file__, __file__]
        identity = [
            torch.__version__,
            transformers.__version__,
            type(model).__qualname__,
            str(model.dtype),
            model.config.to_json_string(use_diff=False),
            [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in code if file],
            # A tensor of no module, made when the model was, may follow its weights.
            sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(source)),
        ]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return cls(directory / f"{digest[:32]}.safetensors")

    def read(self, model: PreTrainedModel) -> Recording | None:
        """The recording, bound to this model's weights; None where there is none that can be read."""
        self.was_read = False
        try:
            with safe_open(self._path, framework="pt") as file:
                graph = json.loads(file.metadata()["graph"])
                constants = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recording = _Reader(graph, constants, model).recording()
        except FileNotFoundError:
            return None
        except Exception as error:
            # Cut short, or of another make: it is only a copy.
            log.info("the recording in %s cannot be read: %s: %s", self._path, type(error).__name__, error)
            self.remove()
            return None
        self.was_read = True
        self._touch()
        return recording

    def write(self, recording: Recording, model: PreTrainedModel) -> None:
        """Keep a recording; where that cannot be done the next start records again."""
        if len(recording.module.graph.nodes) < FEWEST_NODES:
            return
        try:
            writer = _Writer(recording, model)
            data = save(writer.constants, {"graph": json.dumps(writer.graph())})
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(data)
        except (NotKept, OSError, SafetensorError) as error:
            log.info("its recording is not kept: %s", error)
            return
        for file in _oldest(self._path.parent, beyond=MOST_FILES):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget the recording."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.info("%s cannot be removed: %s", self._path, error)

    def _replace(self, data: bytes) -> None:
        with NamedTemporaryFile(dir=self._path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.close()
                # Whoever may enter the directory may read it: a mounted cache has other users.
                Path(file.name).chmod(self._path.parent.stat().st_mode & 0o666)
                Path(file.name).replace(self._path)
            except BaseException:
                Path(file.name).unlink()
                raise

    def _touch(self) -> None:
        try:
            os.utime(self._path)
        except OSError:
            log.debug("%s cannot be touched", self._path)


def _files(source: Path) -> list[Path]:
    """The files of a checkpoint: its directory's, or the one that it is."""
    return [file for file in source.iterdir() if file.is_file()] if source.is_dir() else [source]


def _oldest(directory: Path, *, beyond: int) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    return files[beyond:]


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


# -- writing -----------------------------------------------------------------------------------------------


class _Writer:
    """A recording in what JSON can say."""

    def __init__(self, recording: Recording, model: nn.Module) -> None:
        self._recording = recording
        self._names = {id(tensor): name for name, tensor in _tensors(model).items()}
        self._numbers: dict[fx.Node, int] = {}
        self._examples: dict[str, int] = {}
        self._weights: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}

    def graph(self) -> dict[str, Any]:
        """Raises NotKept where something cannot be said."""
        nodes: list[Any] = []
        for node in self._recording.module.graph.nodes:
            self._numbers[node] = len(nodes)
            args = [self._value(argument) for argument in node.args]
            kwargs = {name: self._value(argument) for name, argument in node.kwargs.items()}
            example = self._example(node.meta.get("val"))
            nodes.append([node.op, self._target(node), node.name, args, kwargs, example])
        if sum(tensor.nbytes for tensor in self.constants.values()) > MOST_BYTES:
            raise NotKept("it has long tensors of its own")
        calls = [self._call(call) for call in self._recording.calls]
        examples = [json.loads(key) for key in self._examples]
        return {"nodes": nodes, "weights": self._weights, "calls": calls, "examples": examples}

    def _target(self, node: fx.Node) -> str:
        target = node.target
        if node.op == "get_attr":
            self._hold(str(target), attribute(self._recording.module, str(target)))
        if isinstance(target, str):
            return target
        if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
            return str(target)
        if target in NAMES:
            return NAMES[target]
        raise NotKept(f"it calls {target}")

    def _hold(self, name: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise NotKept(f"it reads {name}, which is no tensor")
        if id(value) in self._names:
            self._weights[name] = self._names[id(value)]
        else:
            self.constants[name] = value.detach().contiguous().clone()

    def _call(self, call: LayerCall) -> list[Any]:
        sinks = call.kernel.sinks
        if sinks is not None and id(sinks) not in self._names:
            raise NotKept("its attention's sinks belong to no module")
        name = None if sinks is None else self._names[id(sinks)]
        return [call.layer, call.window, call.kernel.scale, call.kernel.softcap, name]

    def _value(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, fx.Node):
            return {"node": self._numbers[value]}
        if isinstance(value, (list, tuple)):
            entries = [self._value(entry) for entry in value]
            return {"tuple": entries} if isinstance(value, tuple) else entries
        if isinstance(value, torch.device):
            return {"device": str(value)}
        for kind, known in KINDS.items():
            if isinstance(value, known):
                return {kind: str(value).removeprefix("torch.")}
        raise NotKept(f"it has an argument of {type(value).__name__}")

    def _example(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._example(entry) for entry in value]
        if not isinstance(value, torch.Tensor):
            return None
        dtype = str(value.dtype).removeprefix("torch.")
        key = json.dumps([dtype, str(value.device), list(value.shape), list(value.stride())])
        return self._examples.setdefault(key, len(self._examples))


# -- reading -----------------------------------------------------------------------------------------------


class _Reader:
    """A recording from what JSON says."""

    def __init__(self, graph: dict[str, Any], constants: dict[str, torch.Tensor], model: nn.Module) -> None:
        self._graph = graph
        self._tensors = _tensors(model)
        weights = {name: self._tensors[weight] for name, weight in graph["weights"].items()}
        self._attributes = constants | weights
        self._nodes: list[fx.Node] = []
        with FakeTensorMode():
            self._examples = [
                torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device)
                for dtype, device, shape, stride in graph["examples"]
            ]

    def recording(self) -> Recording:
        graph = fx.Graph()
        for op, target, name, args, kwargs, example in self._graph["nodes"]:
            node = graph.create_node(
                op,
                self._function(target) if op == "call_function" else target,
                tuple(self._value(argument) for argument in args),
                {key: self._value(argument) for key, argument in kwargs.items()},
                name=name,
            )
            if example is not None:
                node.meta["val"] = self._example(example)
            self._nodes.append(node)
        # The graph is changed before it is bound, and never run as Python.
        with _use_lazy_graph_module(True):
            module = fx.GraphModule(self._attributes, graph)
        return Recording(module, [self._call(*call) for call in self._graph["calls"]])

    def _function(self, target: str) -> Callable[..., Any]:
        if target in FUNCTIONS:
            return FUNCTIONS[target]
        namespace, operation, overload = target.split(".")
        function = getattr(getattr(getattr(torch.ops, namespace), operation), overload)
        assert isinstance(function, torch._ops.OpOverload)  # noqa: SLF001
        return function

    def _call(
        self, layer: int, window: int | None, scale: float, softcap: float | None, sinks: str | None
    ) -> LayerCall:
        return LayerCall(layer, window, Kernel(scale, softcap, self._tensors[sinks] if sinks else None))

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        ((kind, what),) = value.items()
        if kind == "node":
            return self._nodes[what]
        if kind == "tuple":
            return tuple(self._value(entry) for entry in what)
        return torch.device(what) if kind == "device" else getattr(torch, what)

    def _example(self, number: Any) -> Any:
        if isinstance(number, list):
            return [self._example(entry) for entry in number]
        return None if number is None else self._examples[number]
