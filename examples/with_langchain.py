"""LangChain: a prompt template, the model behind basaran_ops, a parser; called, batched and streamed.

pip install langchain-openai; python examples/with_langchain.py
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
    model="any",
    temperature=0,
)
prompt = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")])
chain = prompt | model | StrOutputParser()

print(chain.invoke({"country": "France"}))

# At once: the server runs them in one batch.
for answer in chain.batch([{"country": "Japan"}, {"country": "Germany"}]):
    print(answer)

for piece in chain.stream({"country": "France"}):
    print(piece, end="", flush=True)
print()
