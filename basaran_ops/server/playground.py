"""GET /: a page to try the model on. Plain files, read once; the page calls the API as any client does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from flask import Blueprint, Response, abort, request

PAGE = "index.html"

# Not the system's table, which may say otherwise: browsers run modules of this type only.
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

# Nothing from elsewhere, nothing inline, no form sent, no frame around the page, and no string made markup or
# code: what a model writes can only ever be text.
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)

HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Kept, but asked for again each time, which costs a 304: page and modules must be of one version.
    "Cache-Control": "no-cache",
}

blueprint = Blueprint("playground", __name__)


@dataclass(frozen=True, slots=True)
class PlaygroundFile:
    """One file of the page as it is sent."""

    content: bytes
    mimetype: str
    etag: str


@blueprint.get("/", strict_slashes=True)
def page() -> Response:
    """The page."""
    return _send(PAGE)


@blueprint.get("/playground/<file>", strict_slashes=True)
def part(file: str) -> Response:
    """A module, the style or the icon. Its address is relative to the page's, whatever prefix that has."""
    return _send(file)


@cache
def playground_files() -> dict[str, PlaygroundFile]:
    """All that can be asked for, by name: no path of a request ever reaches the file system."""
    found = {}
    for entry in files(__package__).joinpath("playground").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in TYPES:
            content = entry.read_bytes()
            etag = hashlib.sha256(content).hexdigest()[:32]
            found[entry.name] = PlaygroundFile(content, TYPES[suffix], etag)
    return found


def _send(name: str) -> Response:
    file = playground_files().get(name)
    if file is None:
        abort(404)
    response = Response(file.content, mimetype=file.mimetype)
    response.set_etag(file.etag)
    response.headers.update(HEADERS)
    response.make_conditional(request)  # changes it in place
    return response
