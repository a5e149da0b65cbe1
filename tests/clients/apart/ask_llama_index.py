"""What LlamaIndex's OpenAILike makes of the server's answers: ask_llama_index.py URL FILE."""

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, file = sys.argv[1:]
asked = json.loads(os.environ["ASKED"])
prompt, greedy = asked["PROMPT"], asked["GREEDY"]
question = [ChatMessage(**message) for message in asked["QUESTION"]]


def model(chat):
    return OpenAILike(
        model="org/tiny",
        api_base=f"{url}/v1",
        api_key="any",
        is_chat_model=chat,
        context_window=512,
        timeout=120,
        max_retries=0,
        # Each asyncio.run is a loop of its own, which a client kept from another cannot use.
        reuse_client=False,
        **greedy,
    )


async def collected(streaming):
    return [part async for part in await streaming]


def text_of(part):
    return part.message.content if hasattr(part, "message") else part.text


def told(answer):
    """The text, its last piece, and what the server itself sent."""
    return {"text": text_of(answer), "delta": answer.delta, "raw": raw_of(answer)}


def raw_of(answer):
    return answer.raw.model_dump() if hasattr(answer.raw, "model_dump") else answer.raw


asks = {
    "complete": lambda: told(model(False).complete(prompt)),
    "stream_complete": lambda: [told(part) for part in model(False).stream_complete(prompt)],
    "acomplete": lambda: told(asyncio.run(model(False).acomplete(prompt))),
    "astream_complete": lambda: [
        told(part) for part in asyncio.run(collected(model(False).astream_complete(prompt)))
    ],
    "chat": lambda: told(model(True).chat(question)),
    "stream_chat": lambda: [told(part) for part in model(True).stream_chat(question)],
    "achat": lambda: told(asyncio.run(model(True).achat(question))),
    "astream_chat": lambda: [
        told(part) for part in asyncio.run(collected(model(True).astream_chat(question)))
    ],
}

found = {}
for name, ask in asks.items():
    try:
        found[name] = ask()
    except Exception:
        found[name] = {"failed": traceback.format_exc()}
Path(file).write_text(json.dumps(found))
