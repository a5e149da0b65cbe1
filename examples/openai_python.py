"""OpenAI's client for Python, pointed at basaran_ops by OPENAI_BASE_URL, or at localhost.

pip install openai; python examples/openai_python.py
"""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
model = client.models.list().data[0].id

completion = client.completions.create(
    model=model, prompt="The capital of France is", max_tokens=8, temperature=0
)
print(completion.choices[0].text)

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

# Errors are OpenAI's own, by their status and by the parameter that is at fault.
try:
    client.completions.create(model=model, prompt="x", temperature=5)
except openai.BadRequestError as error:
    print(error.param)
