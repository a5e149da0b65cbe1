"""Engines that say what cannot be, and pipes that break in mid-message: nobody else's answer changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ..running_server import RunningServer
from .belongings import engines_of
from .faulty_engine import PIPE_FAULTS, Fault, expected_token, prompt_for
from .table import Table
from .watch import SHORT, fault

TOKENS = 200
HONEST = SHORT | {"max_tokens": TOKENS}

BEYOND_REASON = (Fault.NEGATIVE_TOKEN, Fault.WRONG_COUNTS)
"""Outputs that no text can be made of."""


def named(kind: Fault) -> str:
    return kind.name.lower().replace("_", " ")


@pytest.fixture(scope="module")
def expected(roomy_path: Path) -> str:
    """The counting engine's answer."""
    text: str = AutoTokenizer.from_pretrained(roomy_path).decode([expected_token(n) for n in range(TOKENS)])
    return text


@pytest.mark.parametrize("lie", [Fault.STRANGERS, Fault.AFTER_THE_END], ids=named)
def test_what_an_engine_says_of_nobodys_sequence_reaches_nobody(
    counting_server: RunningServer, table: Table, expected: str, lie: Fault
) -> None:
    engines = engines_of(counting_server)
    with fault(counting_server, table, f"engine lies: {named(lie)}", body=HONEST) as told:
        for streamed in (False, True):
            told.ask(HONEST | {"prompt": prompt_for(lie), "stream": streamed})
    assert [ending.text for ending in told.endings] == [expected] * 8
    assert engines_of(counting_server) == engines


@pytest.mark.parametrize("lie", BEYOND_REASON, ids=named)
def test_an_output_that_makes_no_sense_ends_its_own_request_alone(
    counting_server: RunningServer, table: Table, expected: str, lie: Fault
) -> None:
    engines = engines_of(counting_server)
    lying = HONEST | {"prompt": prompt_for(lie), "logprobs": 1}
    with fault(counting_server, table, f"engine lies: {named(lie)}", body=HONEST) as told:
        liars = [told.ask(lying | {"stream": streamed}) for streamed in (False, True)]
    assert [(ending.how, ending.code) for ending in liars] == [("error", "internal_error")] * 2
    assert [ending.text for ending in told.endings if ending not in liars] == [expected] * 6
    assert engines_of(counting_server) == engines


def test_tokens_outside_the_vocabulary_have_no_text(
    counting_server: RunningServer, table: Table, expected: str
) -> None:
    lying = HONEST | {"prompt": prompt_for(Fault.OUT_OF_VOCABULARY)}
    with fault(counting_server, table, "engine lies: out of vocabulary", body=HONEST) as told:
        liars = [told.ask(lying | {"stream": streamed}) for streamed in (False, True)]
    assert [(ending.how, ending.text) for ending in liars] == [("complete", "")] * 2
    assert [ending.text for ending in told.endings if ending not in liars] == [expected] * 6


def test_an_engine_whose_counters_run_backward_is_replaced(
    counting_server: RunningServer, table: Table
) -> None:
    before, running = engines_of(counting_server), SHORT | {"max_tokens": 5000}
    with fault(counting_server, table, "engine lies: counters backward", body=running) as told:
        told.ask(SHORT | {"prompt": prompt_for(Fault.COUNTERS_BACKWARD)})
    assert told.codes() == {"engine_failed"}
    assert set(engines_of(counting_server)).isdisjoint(before)


@pytest.mark.parametrize(
    "kind", [kind for kind in PIPE_FAULTS if kind is not Fault.ANOTHER_OBJECT], ids=named
)
def test_what_is_no_message_ends_the_engines_requests_and_it_is_replaced(
    counting_server: RunningServer, table: Table, kind: Fault
) -> None:
    before, running = engines_of(counting_server), SHORT | {"max_tokens": 5000}
    with fault(counting_server, table, f"pipe: {named(kind)}", body=running) as told:
        told.ask(SHORT | {"prompt": prompt_for(kind)})
    assert [(ending.how, ending.code) for ending in told.endings] == [("error", "engine_failed")] * 7
    assert set(engines_of(counting_server)).isdisjoint(before)


def test_a_message_that_no_engine_sends_is_passed_over(
    counting_server: RunningServer, table: Table, expected: str
) -> None:
    engines = engines_of(counting_server)
    with fault(counting_server, table, "pipe: another object", body=HONEST) as told:
        told.ask(HONEST | {"prompt": prompt_for(Fault.ANOTHER_OBJECT)})
    assert [ending.text for ending in told.endings] == [expected] * 7
    assert engines_of(counting_server) == engines
