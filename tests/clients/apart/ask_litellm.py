"""What litellm makes of the server's answers: ask_litellm.py URL NARROW_URL FILE."""

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path

import litellm

url, narrow_url, file = sys.argv[1:]
asked = json.loads(os.environ["ASKED"])
prompt, question, greedy, seeded = (asked[name] for name in ("PROMPT", "QUESTION", "GREEDY", "SEEDED"))
server = {"api_base": f"{url}/v1", "api_key": "any", "timeout": 120, "num_retries": 0, "max_retries": 0}
text = {"model": "text-completion-openai/org/tiny", **server, "prompt": prompt}
chat = {"model": "openai/org/tiny", **server, "messages": question}
usage = {"stream": True, "stream_options": {"include_usage": True}}


async def collected(asking):
    return [chunk async for chunk in await asking]


def refusal(asking):
    try:
        asking()
    except Exception as error:
        return {
            "kind": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "message": str(error),
        }
    return None


asks = {
    "completion": lambda: litellm.text_completion(**text, **greedy),
    "completion of several": lambda: litellm.text_completion(**text | {"prompt": asked["PROMPTS"]}, **greedy),
    "completion streamed": lambda: list(litellm.text_completion(**text, **greedy, **usage)),
    "completion without waiting": lambda: asyncio.run(litellm.atext_completion(**text, **greedy)),
    "completion streamed without waiting": lambda: asyncio.run(
        collected(litellm.atext_completion(**text, **greedy, stream=True))
    ),
    "chat": lambda: litellm.completion(**chat, **seeded),
    "chat streamed": lambda: list(litellm.completion(**chat, **greedy, **usage)),
    "chat rebuilt": lambda: litellm.stream_chunk_builder(
        list(litellm.completion(**chat, **greedy, **usage)), messages=question
    ),
    "chat without waiting": lambda: asyncio.run(litellm.acompletion(**chat, **greedy)),
    "chat streamed without waiting": lambda: asyncio.run(
        collected(litellm.acompletion(**chat, **greedy, stream=True))
    ),
    "chat too long": lambda: refusal(
        lambda: litellm.completion(**chat | {"messages": [{"role": "user", "content": "cat " * 600}]})
    ),
    "completion too long": lambda: refusal(
        lambda: litellm.text_completion(**text | {"prompt": "cat " * 600})
    ),
    "bad parameter": lambda: refusal(lambda: litellm.completion(**chat, temperature=5)),
    "wrong key": lambda: refusal(
        lambda: litellm.completion(**chat | {"api_base": f"{narrow_url}/v1", "api_key": "another"})
    ),
    "wrong model": lambda: refusal(
        lambda: litellm.text_completion(
            **text
            | {
                "api_base": f"{narrow_url}/v1",
                "api_key": "the-key",
                "model": "text-completion-openai/org/none",
            }
        )
    ),
}


def plain(answer):
    """As JSON has it."""
    if isinstance(answer, list):
        return [plain(chunk) for chunk in answer]
    return answer.model_dump() if hasattr(answer, "model_dump") else answer


found = {}
for name, ask in asks.items():
    try:
        found[name] = plain(ask())
    except Exception:
        found[name] = {"failed": traceback.format_exc()}
Path(file).write_text(json.dumps(found))
