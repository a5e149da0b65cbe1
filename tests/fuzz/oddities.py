"""What requests are made of: bodies that are right, and values, paths and heads that hardly are."""

from __future__ import annotations

from typing import Any

NORMAL = {"prompt": "the cat sat", "max_tokens": 4, "temperature": 0}

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        NORMAL,
        {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "logprobs": 3, "echo": True, "best_of": 2},
        {"prompt": [5, 6, 7], "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": [[5], [6]], "max_tokens": 1, "stop": ["x", "the"], "logit_bias": {"5": 1.5}, "seed": 1},
        {"prompt": "x", "suffix": "y", "max_tokens": 0, "user": "me", "temperature": 0.5, "top_p": 0.9},
        {
            "prompt": "x",
            "max_tokens": 3,
            "min_tokens": 2,
            "stop_token_ids": [3],
            "ignore_eos": True,
            "top_k": 4,
        },
    ],
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "max_tokens": 2,
            "n": 2,
        },
        {
            "messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}],
            "max_completion_tokens": 2,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 2,
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        {
            "messages": [
                {"role": "user", "content": "hi", "name": "me"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": [1]}'}}],
                },
                {"role": "tool", "content": "5", "tool_call_id": "1"},
            ],
            "max_tokens": 1,
            "chat_template_kwargs": {"a": {"b": [1]}},
            "response_format": {"type": "text"},
        },
    ],
    "/tokenize": [
        {"prompt": "hi", "return_token_strs": True},
        {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True},
    ],
    "/detokenize": [{"tokens": [5, 6, 7]}],
}

# fmt: off
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**63, -(2**63) - 1, 10**30,
    "", "a", "1", "true", "null", "NaN", "\x00", "\u202e", "\ufeff", "\ufffd", "e\u0301", "\U0010ffff",
    "👩\u200d👩\u200d👧", "x" * 300,
    "<|end|>", "\r\nX-Injected: 1", "../../etc/passwd", "${7*7}", "{{ 7 * 7 }}",
    "%s%n", "'; --", [], {}, [[]], [None], [{}], {"": ""}, {"a": {"a": {"a": []}}}, [1, "a"], [[1], "a"],
    {"type": "text"}, [0] * 60, ["a"] * 30, {str(n): n for n in range(40)}, {"__class__": 1}, "user",
    "\ud800",
]
NAMES = [
    "model", "n", "stop", "stream", "logprobs", "echo", "seed", "tools", "functions", "tool_choice",
    "messages",
    "chat_template", "chat_template_kwargs", "response_format", "stream_options", "logit_bias", "suffix",
    "self",
    "temperature", "top_p", "top_k", "min_p", "best_of", "min_tokens", "return_token_ids", "__proto__",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "conversation", "prompt", "max_tokens",
]
RAW_VALUES = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "0." + "1" * 5000, "01", "+1", ".5", "1e5",
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x41"', "'a'", "undefined", "/*a*/1", "1,", "[1,]", "-0",
    "[" * 200 + "]" * 200, "[" * 9000, '{"a":' * 300 + "1" + "}" * 300, '{"a":1,"a":2}',
    "[" * 150 + "]" * 150,
]
PATHS = [
    "/", "/v1", "/v1/models", "/v1/models/x", "/health", "/openapi.json", "/metrics", "/state", "/drain", "*",
    "/v1/../v1/models", "/v1/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/%00", "/v1/models/%00", "/%ff",
    "/v1/models/..%2f..%2fetc", "/v1/completions/", "/V1/Completions", "/v1//completions", "/.git/config",
    "/v1/models/%0d%0aX-Injected:%201", "/v1/completions?prompt=%ff&n=x", "/%0d%0aX-Injected:%201", "/;a=b",
    "/v1/completions?prompt=a&max_tokens=1", "/v1/completions?max_tokens=1&max_tokens=9999&stop=%00",
    "/v1/completions?" + "a=b&" * 500, "/?" + "%41" * 900, "/v1/models/" + "a" * 3000, "/static/../app.py",
    "/playground/..%5c..%5capp.py", "/v1/models/é", "http://other.example/v1/models", "/v1/completions#x",
    "/v1/models?x=\\", "/v1/completions%20", "/v1/models/%e2%80%ae", "/v1/completions?prompt=%ed%a0%80",
]
METHODS = [
    "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "get", "PROPFIND", "X" * 30, "A-B",
]
HEADERS = [
    "Authorization: Bearer wrong", "Authorization: Basic c2VjcmV0", "Authorization: Bearer s\xe9cret",
    "Authorization:", "Authorization: bearer secret", "X-Request-ID: a\tb", "X-Request-ID: " + "x" * 300,
    "X-Request-ID: \xe9\xff", "Origin: https://good.example", "Origin: null", "Origin: https://bad.example",
    "Access-Control-Request-Headers: a, b\x0bX-Injected: 1", "Content-Type: text/plain", "Content-Type: \xff",
    "Content-Type: multipart/form-data; boundary=x", "Content-Type: application/x-www-form-urlencoded",
    "Content-Encoding: gzip", "Accept: text/html", "Accept-Encoding: br;q=x", "Cookie: " + "a=b; " * 200,
    "traceparent: 00-zz-zz-01", "traceparent: " + "0" * 500, "Host:", "Host: a, b", "Host: [::1",
    "Host: \x00",
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 1e3", "Content-Length: 99999999999999999999",
    "Content-Length: +5", "Content-Length: 5, 5", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip",
    "Transfer-Encoding: chunked, identity", "Transfer-Encoding: \x0bchunked", "Transfer_Encoding: chunked",
    "Expect: 100-continue", "Expect: nothing", "Connection: close", "Connection: upgrade, keep-alive", "X",
    "Upgrade: websocket", "Upgrade: h2c", "X : 1", " X: 1", ": x", "X: a\x00b", "X: a\rb", "X: a\nY: b",
    "X-Forwarded-For: 1", "X-Forwarded-Proto: gopher", "Range: bytes=0-", "Date: x", "If-None-Match: *",
    "If-Modified-Since: x", "Content-Range: bytes 0-1/2", "TE: trailers", "Trailer: x", "PATH_INFO: /x",
]
SIZES = [b"%x", b"%x", b"%x", b"%X;a=b", b"0%x", b"%x ", b"-%x", b"+%x", b"0x%x", b"%xg", b"%x;\x00", b"%x\r"]
ENDS = [b"0\r\n\r\n"] * 5 + [
    b"", b"0\r\n", b"0\r\nX-Injected: 1\r\n\r\n", b"0\r\nBad : 1\r\n\r\n", b"00\r\n\r\n",
]
BYTES = [b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x00", b" ", b":", b"\xff", b"HTTP/9.9", b"0\r\n\r\n"]
# fmt: on
