"""What holds for an architecture when the engine runs it, measured on a tiny model of it.

`python -m tests.engine.model_facts` writes docs/models.md.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel

from basaran_ops.engine.engine import Engine
from basaran_ops.engine.padded_runner import PaddedRunner
from basaran_ops.errors import ModelLoadError
from basaran_ops.outputs import TokenLogprob
from basaran_ops.sampling_params import SamplingParams

from ..architectures import ARCHITECTURES, tiny_architecture
from ..tiny_models import VOCAB
from .engines import drain, engine_for

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

SEQUENCES = 14
LENGTHS = (1, 2, 5, 17, 40)
BUDGET = 32
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Facts:
    """A row of the table; "yes", or what does not hold."""

    runner: str
    greedy: str
    seeded: str
    logprobs: str
    chunked: str
    mixed: str


def measure(name: str) -> Facts:
    """Everything about one architecture."""
    reference, model = tiny_architecture(name), tiny_architecture(name)
    try:
        engine = _engine(model)
    except ModelLoadError as error:
        return Facts("none", *[f"no: {error.message}"] * 5)
    runner = engine._runner
    found = _greedy(engine, reference), _seeded(engine), _logprobs(engine, reference)
    if isinstance(runner, PaddedRunner):
        return Facts("padded", *found, _chunks(runner, model), _mixes(runner))
    return Facts("packed", *found, "yes", "yes")


def _chunks(runner: PaddedRunner, model: PreTrainedModel) -> str:
    if runner.abilities.chunks:
        return "yes"
    return "no: the encoder reads it whole" if model.config.is_encoder_decoder else "no: read whole"


def _mixes(runner: PaddedRunner) -> str:
    if not runner.abilities.batches:
        return "no: one at a time"
    if not runner.abilities.interleaves:
        return "no: one batch at a time, of equal lengths"
    return "yes" if runner.abilities.pads else "no: equal lengths share a batch"


def _engine(model: PreTrainedModel) -> Engine:
    return engine_for(model, slots=6, token_budget=BUDGET)


def _prompts(random: Random) -> list[tuple[int, ...]]:
    return [
        tuple(random.randrange(2, VOCAB) for _ in range(random.choice(LENGTHS))) for _ in range(SEQUENCES)
    ]


def _greedy(engine: Engine, reference: PreTrainedModel) -> str:
    """Random arrivals, lengths and departures; each sequence as generate() alone gives it."""
    random = Random(7)
    prompts = _prompts(random)
    limits = [random.randrange(1, 14) for _ in prompts]
    expected = [_generate(reference, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    tokens: dict[int, list[int]] = {number: [] for number in range(SEQUENCES)}
    cancelled = set()
    added = 0
    while added < SEQUENCES or engine.has_work:
        while added < SEQUENCES and (random.random() < 0.5 or not engine.has_work):
            engine.add(added, prompts[added], SamplingParams(max_tokens=limits[added], temperature=0), None)
            added += 1
        for output in engine.step():
            tokens[output.sequence_id] += output.token_ids
        if random.random() < 0.1 and engine.cancel(number := random.randrange(added)) is not None:
            cancelled.add(number)
    engine.check_idle()
    wrong = [
        number
        for number, want in enumerate(expected)
        if tokens[number] != (want[: len(tokens[number])] if number in cancelled else want)
    ]
    return f"no: {len(wrong)} of {SEQUENCES} differ" if wrong else "yes"


def _seeded(engine: Engine) -> str:
    """The same tokens alone and in company."""
    prompts = _prompts(Random(8))[:6]
    params = [SamplingParams(max_tokens=10, temperature=0.9, top_p=1 - 0.05 * i) for i in range(6)]
    alone = []
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, params[number], number)
        alone.append(drain(engine)[number])
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, params[number], number)
    got = drain(engine)
    wrong = sum(got[number] != alone[number] for number in range(6))
    return f"no: {wrong} of 6 differ" if wrong else "yes"


def _logprobs(engine: Engine, reference: PreTrainedModel) -> str:
    """Against the logits of generate(): after the prompt, and after each beginning of the prompt."""
    scored = engine._runner.scores_prompts
    prompts = [tuple(Random(9).randrange(2, VOCAB) for _ in range(length)) for length in (3, 12)]
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=2, prompt_logprobs=scored)
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, params, None)
    told: dict[int, list[TokenLogprob]] = {0: [], 1: []}
    while engine.has_work:
        for output in engine.step():
            told[output.sequence_id] += [*output.prompt_logprobs, *output.logprobs]
    worst = 0.0
    for number, prompt in enumerate(prompts):
        expected = _own_logits(reference, prompt, params.max_tokens)
        if scored:
            beginnings = (prompt[:length] for length in range(1, len(prompt)))
            expected = [*(_own_logits(reference, each, 1)[0] for each in beginnings), *expected]
        for entry, logits in zip(told[number], expected, strict=True):
            row = logits.float().log_softmax(dim=-1)
            worst = max(worst, abs(entry.logprob - row[entry.token_id].item()))
    if worst > TOLERANCE:
        return f"no: off by {worst:.0e}"
    return "yes" if scored else "of completions"


def _own_logits(model: PreTrainedModel, prompt: tuple[int, ...], limit: int) -> list[torch.Tensor]:
    output = _run_generate(model, prompt, limit, output_logits=True, return_dict_in_generate=True)
    return [step[0] for step in output.logits]


def _generate(model: PreTrainedModel, prompt: tuple[int, ...], limit: int) -> list[int]:
    tokens: list[int] = _run_generate(model, prompt, limit)[0, -limit:].tolist()
    return tokens


def _run_generate(model: PreTrainedModel, prompt: tuple[int, ...], limit: int, **wanted: bool) -> Any:
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    if any(hasattr(module, "conv1d_state") for module in model.modules()):
        # It remembers the last text.
        model = copy.deepcopy(model)
    with torch.inference_mode():
        return model.generate(
            torch.tensor([prompt]),
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            **wanted,
        )


HEAD = """\
# Which models run, and how

Written by `make models`: it builds a tiny random model of each architecture that transformers {version} generates
text with, runs it through the engine in float32, and compares. A test holds this page to be true.

- **greedy**: {sequences} prompts of 1 to 40 tokens, arriving and leaving at random, give the tokens that
  `generate()` gives for each alone.
- **seeded**: sampled tokens are the same alone and in company.
- **log-probabilities**: within {tolerance:g}, they are those of `generate()`: of a completion after the prompt, of a
  prompt's tokens after those before. Some models cannot score a prompt: an encoder reads it both ways.
- **chunked**: a long prompt is read in several steps, between which others go on.
- **mixed**: prompts of different lengths share a batch.

The packed runner puts all tokens of a step into one pass without padding, and shares what prompts have in common.
The padded one steps batches as `generate()` does, with the model's own cache; it runs what the packed one cannot.
`ENGINE_RUNNER` overrides the choice. Models with longrope are held to the positions up to which their factors are
the same, since a pass has one set of them for all its rows.

{packed} architectures run packed and {padded} padded, {encoder_decoder} of these encoder-decoder models.

"""


def page(rows: dict[str, Facts]) -> str:
    import transformers

    runners = [facts.runner for facts in rows.values()]
    text = HEAD.format(
        version=transformers.__version__,
        sequences=SEQUENCES,
        tolerance=TOLERANCE,
        packed=runners.count("packed"),
        padded=runners.count("padded"),
        encoder_decoder=sum(ARCHITECTURES[name].encoder_decoder for name in rows),
    )
    text += "| architecture | runner | greedy | seeded | log-probabilities | chunked | mixed | note |\n"
    text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    for name, facts in sorted(rows.items()):
        cells = [getattr(facts, column.name) for column in fields(Facts)]
        text += f"| {' | '.join([name, *cells, ARCHITECTURES[name].note])} |\n"
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """XLM prints a warning at every step."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for name in sys.argv[1:] or ARCHITECTURES:
        with quiet():
            rows[name] = measure(name)
        print(name, *(getattr(rows[name], column.name) for column in fields(Facts)), sep="\t", flush=True)
    if len(sys.argv) == 1:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
