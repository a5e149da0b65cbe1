"""Engines that die, stop, crawl, lose slots and run out of memory, while others are served."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from ..running_server import RunningServer
from ..scrape import Scrape
from .belongings import engines_of
from .clients import eventually
from .faulty_engine import MEMORY_FAULTS, SLOW_SECONDS, Fault, prompt_for
from .table import Table
from .watch import LONG, SHORT, fault

ENDLESS = LONG | {"max_tokens": 90_000}


def test_an_engine_killed_in_mid_stream_ends_its_requests_and_is_replaced(
    real_server: RunningServer, table: Table
) -> None:
    killed = engines_of(real_server)
    with fault(real_server, table, "engine killed in mid-stream", in_flight=12) as happening:
        os.kill(killed[0], signal.SIGKILL)
    assert happening.codes() == {"engine_failed"}
    assert set(engines_of(real_server)).isdisjoint(killed)


def test_an_engine_killed_while_idle_and_again_while_it_loads_is_replaced(
    counting_server: RunningServer, table: Table
) -> None:
    name = "engine killed while idle, then twice while loading"
    with fault(counting_server, table, name, in_flight=0) as happening:
        happening.times = 3
        killed: set[int] = set()
        for _ in range(happening.times):
            eventually(lambda: not killed.issuperset(engines_of(counting_server)))
            (engine,) = set(engines_of(counting_server)) - killed
            os.kill(engine, signal.SIGKILL)
            killed.add(engine)


def test_a_stopped_engine_is_replaced_and_its_requests_are_told(
    counting_server: RunningServer, table: Table
) -> None:
    with fault(counting_server, table, "engine stopped (SIGSTOP)", in_flight=8, body=ENDLESS) as happening:
        os.kill(engines_of(counting_server)[0], signal.SIGSTOP)
    assert happening.codes() == {"engine_failed"}
    assert all("has done no step for" in ending.detail for ending in happening.endings)


def test_an_engine_that_crawls_holds_up_no_probe_and_loses_nobody(
    counting_server: RunningServer, table: Table
) -> None:
    body = SHORT | {"max_tokens": 10}
    crawl = body | {"prompt": prompt_for(Fault.SLOW)}
    with fault(counting_server, table, "engine that crawls", in_flight=4, body=crawl) as happening:
        slowest = 0.0
        with httpx.Client(base_url=counting_server.management_url) as http:
            for path in ("/livez", "/readyz", "/metrics") * 5:
                started = time.monotonic()
                assert http.get(path).status_code == 200
                slowest = max(slowest, time.monotonic() - started)
        happening.ask(crawl)
    assert slowest < SLOW_SECONDS
    assert {ending.how for ending in happening.endings} == {"complete"}


def test_a_slot_that_is_not_given_back_is_found_and_the_engine_replaced(
    real_server: RunningServer, table: Table
) -> None:
    before = engines_of(real_server)
    with fault(real_server, table, "slot leaked by the engine", in_flight=0) as happening:
        assert happening.ask(SHORT | {"prompt": prompt_for(Fault.LEAK)}).how == "complete"
        eventually(lambda: set(engines_of(real_server)).isdisjoint(before))
    assert "1 slots leaked" in real_server.log.read_text()


def test_a_sequence_that_is_forgotten_is_told_so_while_others_go_on(
    real_server: RunningServer, table: Table
) -> None:
    forgotten = SHORT | {"prompt": prompt_for(Fault.FORGET), "max_tokens": 500}
    before = engines_of(real_server)
    others = SHORT | {"max_tokens": 500}
    with fault(real_server, table, "sequence forgotten by the engine", in_flight=3, body=others) as happening:
        ending = happening.ask(forgotten)
    assert (ending.how, ending.code) == ("error", "engine_failed")
    assert "has lost the request" in ending.detail
    assert [each.how for each in happening.endings if each is not ending] == ["complete"] * 3
    assert engines_of(real_server) == before


@pytest.mark.parametrize("kind", MEMORY_FAULTS, ids=lambda kind: kind.name.lower())
def test_without_memory_for_a_step_the_last_to_ask_is_told_and_the_others_go_on(
    real_server: RunningServer, table: Table, kind: Fault
) -> None:
    before, engines = Scrape.of(real_server).value("device_oom_total"), engines_of(real_server)
    name = f"step fails: {kind.name.lower().replace('_', ' ')}"
    with fault(real_server, table, name, in_flight=3, body=SHORT | {"max_tokens": 400}) as happening:
        ending = happening.ask(SHORT | {"prompt": prompt_for(kind), "max_tokens": 400})
    assert (ending.how, ending.code) == ("error", "engine_failed")
    assert "the device has no memory left for this request" in ending.detail
    assert [each.how for each in happening.endings if each is not ending] == ["complete"] * 3
    assert Scrape.of(real_server).value("device_oom_total") == before + 1
    assert engines_of(real_server) == engines
