"""Asks the installed server for a completion, as its clients do: for `helm test`."""

import json
import os
import pathlib
import urllib.request

API = os.environ["API"]
HEADERS = {"Content-Type": "application/json"}
if "API_KEYS_FILE" in os.environ:
    key = pathlib.Path(os.environ["API_KEYS_FILE"]).read_text().split()[0]
    HEADERS["Authorization"] = f"Bearer {key}"


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(API + path, data, HEADERS)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


model = ask("/v1/models")["data"][0]["id"]
answer = ask("/v1/completions", {"model": model, "prompt": "The capital of France is", "max_tokens": 8})
print(json.dumps(answer, indent=2))
if answer["model"] != model or answer["usage"]["completion_tokens"] < 1:
    raise SystemExit("no token came")
