"""A hub that says nothing, hangs up or answers in drops: the server waits, says so, and can be ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from basaran_ops.checkpoint import resolve
from basaran_ops.errors import ModelLoadError
from basaran_ops.settings import Settings

from ..fake_hub import FakeHub, fake_hub
from ..running_server import RunningServer, running_server
from .clients import ask, eventually
from .conftest import SMALL
from .hub import MoodyHub, moody_hub
from .table import Table
from .watch import SHORT, the_end


@pytest.fixture
def hub(tiny_path: Path) -> Iterator[MoodyHub]:
    with fake_hub(FakeHub(repos={"org/tiny": tiny_path})) as honest, moody_hub(honest.url, "silent") as hub:
        yield hub


def hub_settings(hub: MoodyHub, tmp_path: Path) -> dict[str, str]:
    own = {"MODEL": "org/tiny", "MODEL_CACHE_DIR": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    return SMALL | own | {"HF_ENDPOINT": hub.url}


def waits(server: RunningServer) -> bool:
    """Whether it lives, is not ready, and tells so."""
    refused = ask(server.port, SHORT)
    codes = [httpx.get(server.management_url + path).status_code for path in ("/livez", "/readyz")]
    return (refused.how, refused.status, codes) == ("error", 503, [200, 503])


def test_a_server_whose_hub_says_nothing_can_be_ended(hub: MoodyHub, tmp_path: Path, table: Table) -> None:
    with running_server(tmp_path / "log", **hub_settings(hub, tmp_path)) as server:
        server.wait_for(lambda health: health["replicas"][0]["stage"] == "fetching org/tiny from the hub", 30)
        eventually(lambda: hub.asked > 0)
        assert waits(server)
        with the_end(server, table, "SIGTERM while the hub says nothing", in_flight=0):
            server.process.terminate()


def test_a_hub_that_hangs_up_and_then_answers_in_drops_is_waited_for(hub: MoodyHub, tmp_path: Path) -> None:
    hub.mood = "reset"
    with running_server(tmp_path / "log", **hub_settings(hub, tmp_path)) as server:
        server.wait_for(lambda health: health["replicas"][0]["restarts"] >= 1, 30)
        assert waits(server)
        asked, hub.mood = hub.asked, "trickle"
        eventually(lambda: hub.asked > asked)
        assert waits(server)
        hub.mood = "honest"
        server.wait_ready()
        assert ask(server.port, SHORT).how == "complete"
    assert "Traceback" not in server.log.read_text()


def test_a_hub_that_says_nothing_is_given_up_in_time(
    hub: MoodyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    settings = Settings(model="org/tiny", model_cache_dir=str(tmp_path / "cache"))
    try:
        with pytest.raises(ModelLoadError, match="cannot be fetched from the hub: ") as raised:
            resolve(settings, print)
        assert not raised.value.permanent
        hub.mood = "honest"
        fetched = resolve(settings, print)
        # Then it is in the cache.
        hub.mood = "silent"
        assert resolve(settings, print) == fetched
    finally:
        huggingface_hub.close_session()
