"""How often a step waits for the device, or sends it numbers: as often for many rows as for few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from basaran_ops.engine import attention
from basaran_ops.engine.attention import StepPlan
from basaran_ops.engine.engine import Engine
from basaran_ops.engine.transfer import send, send_all
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import VOCAB, tiny_model
from .engines import engine_for

aten = torch.ops.aten

WAITING = {
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}
ASKING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2}


class Python(TorchFunctionMode):
    """Counts what Python asks of tensors, as it would cost where they are on a device."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WAITING:
            self._counts["out"] += 1
        elif func is torch.tensor:
            self._counts["in"] += 1
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            # A list becomes a tensor, and goes to the device; a mask becomes numbers, which come from it.
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self._counts["in"] += sum(isinstance(one, list) for one in index)
            self._counts["out"] += sum(
                isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in index
            )
        return func(*args, **kwargs or {})


class Operations(TorchDispatchMode):
    """Counts operations that wait for a value, whoever called them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._counts["asked"] += func.overloadpacket in ASKING
        return func(*args, **kwargs or {})


def crossings(work: Callable[[], Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(Operations(counts))
        stack.enter_context(Python(counts))
        work()
    return +counts


def test_the_counter_sees_what_would_wait() -> None:
    numbers = torch.arange(6.0)
    assert crossings(lambda: [float(number) for number in numbers])["out"] == 6
    assert crossings(lambda: numbers[numbers > 3]) == {"out": 1}
    assert crossings(lambda: numbers[[1, 2]]) == {"in": 1}
    assert crossings(lambda: torch.tensor([1])) == {"in": 1}
    assert crossings(lambda: torch.nonzero(numbers)) == {"asked": 1}
    assert crossings(lambda: numbers[2:] + 1) == {}


def params(**asked: Any) -> SamplingParams:
    return SamplingParams(max_tokens=99, ignore_eos=True, **asked)


GREEDY = params(temperature=0)
SAMPLED = [
    params(temperature=0.7, top_p=0.9),
    params(top_k=7),
    params(min_p=0.05, temperature=1.3),
    GREEDY,
]
PENALTIES = [
    SamplingParams(max_tokens=99, repetition_penalty=1.2, min_tokens=90, stop_token_ids=(3, 4)),
    params(presence_penalty=0.5, frequency_penalty=0.5),
    params(logit_bias=((5, 1.0), (6, -1.0))),
]
LOGPROBS = [params(logprobs=3), params(temperature=0, logprobs=5), params()]
CONSTRAINED = {
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7], [8, 9], [9, 8, 7]],
    "suppress_tokens": [11, 12],
    "min_new_tokens": 50,
    "eos_token_id": 2,
}


def decoding(rows: int, kinds: list[SamplingParams], *, config: dict[str, Any] | None = None) -> Engine:
    """An engine whose next step is of so many sequences that decode, with free slots between them."""
    model = tiny_model("mistral")
    model.generation_config.update(**config or {})
    engine = engine_for(
        model, slots=32, token_budget=512, eos=[2], engine_compile=False, engine_speculate=False
    )
    for number in range(2 * rows):
        prompt = tuple((7 * number + place) % VOCAB for place in range(5 + 3 * number % 17))
        engine.add(number, prompt, kinds[number // 2 % len(kinds)], number)
    while not engine.stats.batch_size == engine.stats.batch_tokens == 2 * rows:
        engine.step()
    for number in range(1, 2 * rows, 2):
        engine.cancel(number)
    return engine


CASES = {
    "greedy": ([GREEDY], {}),
    "sampled": (SAMPLED, {}),
    "penalties": (PENALTIES, {}),
    "logprobs": (LOGPROBS, {}),
    "a config that constrains": ([GREEDY], CONSTRAINED),
    "all at once": ([*SAMPLED, *PENALTIES, *LOGPROBS], CONSTRAINED),
}


@pytest.mark.parametrize(("kinds", "config"), CASES.values(), ids=CASES.keys())
def test_many_rows_wait_for_the_device_as_often_as_few(
    kinds: list[SamplingParams], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU: without the compiled kernel, in groups with holes as well as in several.
    monkeypatch.setattr(StepPlan, "native", False)
    monkeypatch.setattr(attention, "GROUP_COST", 30)
    least = max(4, len(kinds))
    counts = {}
    for rows in (least, 16):
        engine = decoding(rows, kinds, config=config)
        counts[rows] = crossings(engine.step)
        assert engine.stats.batch_size == engine.stats.batch_tokens == rows
    assert counts[16] == counts[least]
    # The tokens, and with log-probabilities two answers for each number of alternatives.
    assert counts[16]["out"] <= 1 + 1 + 2 * 2


def test_scores_of_prompts_come_in_one_answer_too() -> None:
    def steps(count: int) -> Counter[str]:
        engine = engine_for(tiny_model("llama"), token_budget=128, engine_compile=False)
        for number in range(count):
            engine.add(number, tuple(range(3 + number, 9)), params(logprobs=2, prompt_logprobs=True), number)
        return crossings(engine.step)

    assert steps(6) == steps(2)


class Gpu(TorchFunctionMode):
    """Takes the place of a GPU: says what was pinned, and what was copied without waiting."""

    def __init__(self) -> None:
        self.pinned: list[bool] = []
        self.copied: list[bool] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            self.pinned.append(kwargs.pop("pin_memory"))
        if func is torch.Tensor.to:
            self.copied.append(kwargs.pop("non_blocking"))
            args = (args[0], "cpu")
        return func(*args, **kwargs)


def test_what_goes_to_a_gpu_is_pinned_and_nobody_waits_for_it() -> None:
    with Gpu() as gpu:
        send([0.5], torch.device("cuda"), torch.float32)
        left, right = send_all(([1, 2], [3]), torch.device("cuda"))
    assert gpu.pinned == gpu.copied == [True, True]
    assert (left.tolist(), right.tolist()) == ([1, 2], [3])
