"""How the page is served: open, cached, confined, and part of the package."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
import setuptools

from basaran_ops.server.playground import HEADERS, playground_files
from basaran_ops.telemetry.metrics import CACHE_SECONDS

from ..running_server import RunningServer, running_server
from ..scrape import Scrape
from ..server.test_api import error

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "basaran_ops" / "server" / "playground"


def test_the_page_and_all_that_it_loads_are_served(server: RunningServer) -> None:
    page = server.http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (SOURCES / "index.html").read_bytes()
    for file in SOURCES.iterdir():
        answer = server.http.get(f"/playground/{file.name}")
        assert answer.content == file.read_bytes()
    assert server.http.get("/playground/app.js").headers["content-type"].startswith("text/javascript")
    assert server.http.get("/playground/style.css").headers["content-type"].startswith("text/css")
    assert server.http.get("/playground/icon.svg").headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
def test_it_is_confined_and_kept_until_it_changes(server: RunningServer, path: str) -> None:
    answer = server.http.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert not re.search("unsafe|https?:|data:|[*]", answer.headers["content-security-policy"])
    etag = answer.headers["etag"]
    again = server.http.get(path, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert server.http.get(path, headers={"If-None-Match": '"older"'}).status_code == 200
    head = server.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/none.js",
        "/playground/../app.py",
        "/playground/%2e%2e/app.py",
        "/playground/..%2fapp.py",
        "/playground//etc/passwd",
        "/playground/%2fetc%2fpasswd",
        "/playground/app.js/",
        "/playground/app.js%00",
        "/index.html",
        "/favicon.ico",
    ],
)
def test_nothing_else_is(server: RunningServer, path: str) -> None:
    # As it stands: httpx would tidy the path.
    url = httpx.URL(server.url).copy_with(raw_path=path.encode())
    assert error(server.http.get(url), 404)["code"] == "not_found"


def test_the_page_takes_no_other_method(server: RunningServer) -> None:
    answer = server.http.post("/", json={})
    assert error(answer, 405)["code"] == "method_not_allowed"


def test_the_page_is_open_where_the_api_asks_for_a_key(keyed_server: RunningServer) -> None:
    assert keyed_server.http.get("/").status_code == 200
    assert keyed_server.http.get("/playground/app.js").status_code == 200
    for path in ("/v1/models", "/tokenizer_info", "/none", "/playground"):
        assert error(keyed_server.http.get(path), 401)["code"] == "invalid_api_key"


def test_the_page_is_no_request_of_the_model(server: RunningServer) -> None:
    before = Scrape.of(server)
    for path in ("/", "/playground/app.js", "/playground/style.css", "/playground/none.js"):
        server.http.get(path)
    time.sleep(CACHE_SECONDS)
    after = Scrape.of(server)
    for name in ("requests_total", "requests_rejected_total"):
        assert after.value(name) == before.value(name)
    routes, known = after.by("http_requests_total", "route"), before.by("http_requests_total", "route")
    more = {route: count - known.get(route, 0) for route, count in routes.items()}
    assert {route: count for route, count in more.items() if count} == {"/": 1, "/playground/<file>": 3}


def test_without_it_the_server_has_no_page(tiny_path: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", MODEL=str(tiny_path), SERVER_NO_PLAYGROUND="true") as server:
        server.wait_for(lambda health: True)
        assert error(server.http.get("/"), 404)["code"] == "not_found"
        assert error(server.http.get("/playground/app.js"), 404)["code"] == "not_found"


@pytest.mark.filterwarnings("ignore:.*experimental")  # of setuptools, about other parts of pyproject.toml
def test_the_package_has_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution()
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}  # those of version control, of which a source archive has none
    found = command.find_data_files("basaran_ops.server", "basaran_ops/server")
    packed = {str(Path(path).relative_to("basaran_ops/server")) for path in found}
    assert packed == {f"playground/{file.name}" for file in SOURCES.iterdir()}
    assert {file.name for file in SOURCES.iterdir()} == set(playground_files())


def test_no_module_makes_markup_or_code_of_text_or_names_another_host() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML"
        r"|\beval\b|new Function|srcdoc|javascript:|\bimport\(|style="
    )
    for file in SOURCES.iterdir():
        text = file.read_text()
        assert not forbidden.search(text), file.name
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        # A reference in a comment, and the name of SVG's own elements.
        assert hosts <= {"html.spec.whatwg.org", "www.w3.org"}, file.name
    page = (SOURCES / "index.html").read_text()
    assert not re.search(r"\son\w+=|<style", page)
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert addresses
    assert not any(address.startswith(("/", "http", "data:")) for address in addresses), (
        "relative to any prefix"
    )
