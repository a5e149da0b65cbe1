#!/bin/sh
# The API by hand. BASE_URL is where the server is.
set -eu
url="${BASE_URL:-http://localhost:8000}"

echo "# What is served?"
curl -sf "$url/v1/models"

echo "# A completion, with the likeliest tokens"
curl -sf "$url/v1/completions" \
  -d '{"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0, "logprobs": 2}'

echo "# The same as server-sent events"
curl -sfN "$url/v1/completions" \
  -d '{"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0, "stream": true}'

echo "# A conversation"
curl -sf "$url/v1/chat/completions" \
  -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'

echo "# How many tokens has a text?"
curl -sf "$url/tokenize" -d '{"prompt": "The capital of France is"}'

echo "# What is wrong with this? (400, and the parameter's name)"
curl -s "$url/v1/completions" -d '{"prompt": "x", "temperature": 5}'
