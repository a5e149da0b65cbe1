"""Where the server listens, on a real one."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx

from ..running_server import RunningServer, running_server


def test_all_addresses_of_ipv6_and_ipv4_are_served_where_the_machine_has_both(
    tiny_path: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOTS="2", HOST="::") as server:
        if not socket.has_dualstack_ipv6():
            assert_refused(server, "::")
            return
        server.wait_ready()
        for host in ("127.0.0.1", "[::1]"):
            answer = httpx.post(
                f"http://{host}:{server.port}/tokenize", json={"prompt": "the cat"}, timeout=10
            )
            assert answer.status_code == 200
            assert httpx.get(f"http://{host}:{server.management_port}/readyz", timeout=10).status_code == 200


def test_an_address_that_is_not_this_machines_is_refused_by_name(tiny_path: Path, tmp_path: Path) -> None:
    # Of documentation's range (RFC 3849).
    host = "2001:db8::1"
    with running_server(tmp_path / "log", MODEL=str(tiny_path), ENGINE_SLOTS="2", HOST=host) as server:
        assert_refused(server, host)


def assert_refused(server: RunningServer, host: str) -> None:
    assert server.process.wait(30) != 0
    assert host in server.log.read_text()
