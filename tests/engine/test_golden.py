"""The golden rule: whatever else is in the batch, a sequence's tokens are those of generate() alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from basaran_ops.engine import recording_file
from basaran_ops.engine.packed_runner import PackedRunner
from basaran_ops.engine.recording_file import RecordingFile
from basaran_ops.sampling_params import SamplingParams

from ..tiny_models import CONFIGS, VOCAB, generate, tiny_model
from .engines import drain, engine_for, packed_engine

SEQUENCES = 30
LENGTHS = (1, 2, 5, 17, 40, 80)


def prompts(random: Random) -> list[tuple[int, ...]]:
    return [tuple(random.randrange(VOCAB) for _ in range(random.choice(LENGTHS))) for _ in range(SEQUENCES)]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_equal_generate_alone(name: str) -> None:
    random = Random(name)
    model = tiny_model(name)
    given = prompts(random)
    limits = [random.randrange(1, 25) for _ in given]
    expected = [generate(model, prompt, limit) for prompt, limit in zip(given, limits, strict=True)]
    engine = packed_engine(model)
    to_cancel = set(random.sample(range(SEQUENCES), 6))
    cancelled: set[int] = set()
    tokens: dict[int, list[int]] = {number: [] for number in range(SEQUENCES)}
    batch_sizes = set()
    added = 0
    while added < SEQUENCES or engine.has_work:
        while added < SEQUENCES and (random.random() < 0.5 or not engine.has_work):
            params = SamplingParams(max_tokens=limits[added], temperature=0)
            engine.add(added, given[added], params, None)
            added += 1
        for output in engine.step():
            tokens[output.sequence_id] += output.token_ids
        batch_sizes.add(engine.stats.batch_size)
        for number in [n for n in to_cancel if n < added and random.random() < 0.2]:
            to_cancel.discard(number)
            if engine.cancel(number) is not None:
                cancelled.add(number)
    engine.check_idle()
    assert max(batch_sizes) > 4, "nothing was batched"
    for number, (got, want) in enumerate(zip(tokens.values(), expected, strict=True)):
        assert got == want[: len(got)], f"sequence {number} differs"
        assert len(got) == limits[number] or number in cancelled, f"sequence {number} is incomplete"
    assert cancelled, "nothing was cancelled"
    assert len({tuple(want) for want in expected}) > SEQUENCES // 2, "the model says the same to everything"


MODES = {
    "as it is": (),
    "recorded": ("engine_compile",),
    "read from a file": ("engine_compile",),
    "prefix-cached": ("engine_prefix_cache",),
    "speculative": ("engine_speculate",),
    "all at once": ("engine_compile", "engine_prefix_cache", "engine_speculate"),
}
"""What is switched on of what makes it fast."""
SWITCHES = MODES["all at once"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_greedy_tokens_equal_generate_alone_in_every_fast_mode(
    name: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_file, "FEWEST_NODES", 1)
    model = tiny_model(name)
    settings = {switch: switch in MODES[mode] for switch in SWITCHES}
    kept = RecordingFile.of(model, tmp_path, tmp_path / "recordings") if mode == "read from a file" else None
    random = Random(name)
    shared = tuple(random.randrange(VOCAB) for _ in range(50))
    given = [shared + tuple(random.randrange(VOCAB) for _ in range(n)) for n in (1, 3, 9, 14, 20, 31)]
    expected = [generate(model, prompt, 40) for prompt in given]
    if kept:
        engine_for(model, kept=kept, **settings)
        # Its attention goes with the engine.
        model.set_attn_implementation("eager")
    engine = engine_for(model, kept=kept, **settings)
    tokens = []
    for number, prompt in enumerate(given):
        engine.add(number, prompt, SamplingParams(max_tokens=40, temperature=0), None)
        tokens.append(drain(engine)[number])
    assert tokens == expected
    runner = engine._runner
    assert isinstance(runner, PackedRunner)
    assert (runner._compiled is not None) == settings["engine_compile"]
    assert (engine.stats.prefix_hits > 0) == settings["engine_prefix_cache"]
    assert (engine.stats.drafted_tokens > 0) == settings["engine_speculate"]
    assert kept is None or kept.was_read


def test_a_seeded_sequence_is_the_same_alone_and_in_company() -> None:
    random = Random(4)
    model = tiny_model("qwen3")
    given = prompts(random)
    settings = [
        SamplingParams(max_tokens=20, temperature=0.8),
        SamplingParams(max_tokens=20, top_p=0.9),
        SamplingParams(max_tokens=20, top_k=7),
        SamplingParams(max_tokens=20, min_p=0.05, temperature=1.3),
        SamplingParams(max_tokens=20, temperature=0),
    ]
    alone = []
    for number, prompt in enumerate(given):
        engine = packed_engine(model)
        engine.add(number, prompt, settings[number % 5], number)
        alone.append(drain(engine)[number])
    engine = packed_engine(model)
    for number, prompt in enumerate(given):
        engine.add(number, prompt, settings[number % 5], number)
    together = drain(engine)
    assert [together[number] for number in range(SEQUENCES)] == alone


def test_different_seeds_differ_and_no_seed_is_random() -> None:
    engine = packed_engine(tiny_model("llama"))
    params = SamplingParams(max_tokens=20)
    for number, seed in enumerate([1, 2, 1, None, None]):
        engine.add(number, (5, 6, 7), params, seed)
    tokens = drain(engine)
    assert tokens[0] == tokens[2]
    assert tokens[0] != tokens[1]
    assert tokens[3] != tokens[4]


def test_a_sequence_ends_at_an_eos_token_and_says_stop() -> None:
    model = tiny_model("llama")
    first = generate(model, (5, 6, 7), 5)
    engine = packed_engine(model, eos=[first[3]])
    engine.add(0, (5, 6, 7), SamplingParams(max_tokens=50, temperature=0), None)
    outputs = [output for _ in range(4) for output in engine.step()]
    assert [token for output in outputs for token in output.token_ids] == first[:4]
    assert [output.finish_reason for output in outputs] == [None, None, None, "stop"]
    assert not engine.has_work


def test_a_sequence_ends_where_the_context_does() -> None:
    engine = packed_engine(tiny_model("llama"))
    engine.add(0, tuple(range(300)) + tuple(range(200)), SamplingParams(max_tokens=100, temperature=0), None)
    tokens = drain(engine)[0]
    assert len(tokens) == 12
