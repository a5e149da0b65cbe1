"""A model in this process: streamed, scored, asked by many threads, in a conversation.

python examples/library.py [hub id, directory or .gguf file]
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from basaran_ops import load_model, reduce_choice

# Without a name: a small default model, which is fetched once.
model = load_model(sys.argv[1] if len(sys.argv) > 1 else "")

# A text, as it is written.
for choice in model("The capital of France is", max_tokens=24, temperature=0):
    print(choice["text"], end="", flush=True)
print()

# How likely is a text? Nothing is generated.
(scored,) = model("The capital of France is Paris", max_tokens=0, echo=True, logprobs=0)
for token, logprob in zip(scored["logprobs"]["tokens"], scored["logprobs"]["token_logprobs"], strict=True):
    print(f"{token!r}: {logprob}")

# Many threads, one model: their requests share each pass through it.
countries = ["Italy", "Japan", "Peru", "Kenya", "Norway", "Egypt", "Chile", "Nepal"]


def capital(country: str) -> str:
    """What the model takes for a country's capital."""
    return reduce_choice(model(f"The capital of {country} is", max_tokens=4, temperature=0))["text"]


with ThreadPoolExecutor(len(countries)) as threads:
    for country, text in zip(countries, threads.map(capital, countries), strict=True):
        print(f"{country}:{text}")

# A conversation, by the model's chat template.
messages = [{"role": "user", "content": "What is the capital of France?"}]
for choice in model.chat(messages, max_tokens=32, temperature=0):
    print(choice["text"], end="", flush=True)
print()

model.close()
