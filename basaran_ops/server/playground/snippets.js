/** A request as others would send it. The key is never in it: it comes from the reader's environment. */

/** A command for a POSIX shell. */
export function asCurl(root, { path, body }, withKey) {
  const lines = [
    `curl ${body.stream ? "-N " : ""}${shellQuoted(new URL(path, root).href)}`,
    `-H ${shellQuoted("Content-Type: application/json")}`,
    ...(withKey ? ['-H "Authorization: Bearer $OPENAI_API_KEY"'] : []),
    `-d ${shellQuoted(JSON.stringify(body, null, 2))}`,
  ];
  return `${lines.join(" \\\n  ")}\n`;
}

/** Within single quotes a POSIX shell changes nothing; a quote itself has to be outside of them. */
export function shellQuoted(text) {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

/** What OpenAI's Python client takes by name; the rest is in its `extra_body`. */
export const NAMED = {
  "v1/completions": [
    "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
    "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
  ],
  "v1/chat/completions": [
    "model", "messages", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "n", "parallel_tool_calls", "presence_penalty", "response_format", "seed", "stop",
    "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
  ],
};

/** A program for OpenAI's Python client. */
export function asPython(root, { path, body }, withKey) {
  const chat = path.endsWith("chat/completions");
  const asked = { ...body };
  // Several answers in one stream come mixed.
  const streamed = Boolean(body.stream) && (body.n ?? 1) === 1;
  if (!streamed) delete asked.stream;
  const named = Object.entries(asked).filter(([name]) => NAMED[path].includes(name));
  const others = Object.entries(asked).filter(([name]) => !NAMED[path].includes(name));
  const key = withKey ? 'os.environ["OPENAI_API_KEY"]' : '"none"';
  const base = pythonLiteral(new URL("v1", root).href);
  const call = [
    `client.${chat ? "chat." : ""}completions.create(`,
    ...named.map(([name, value]) => `    ${name}=${pythonLiteral(value, 4)},`),
    ...(others.length > 0 ? [`    extra_body=${pythonLiteral(Object.fromEntries(others), 4)},`] : []),
    ")",
  ].join("\n");
  const text = streamed ? (chat ? "choice.delta.content or \"\"" : "choice.text") : chat ? "choice.message.content" : "choice.text";
  const rest = streamed
    ? [
        `for chunk in ${call}:`,
        "    for choice in chunk.choices:",
        `        print(${text}, end="", flush=True)`,
      ]
    : [`completion = ${call}`, "for choice in completion.choices:", `    print(${text})`];
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${base}, api_key=${key})`,
    ...rest,
    "",
  ].join("\n");
}

/** A JSON value as Python writes it. Strings need nothing: every string of JSON is one of Python. */
export function pythonLiteral(value, indent = 0) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const items = Array.isArray(value)
    ? value.map((item) => pad + pythonLiteral(item, indent + 4))
    : Object.entries(value).map(
        ([name, item]) => `${pad}${JSON.stringify(name)}: ${pythonLiteral(item, indent + 4)}`,
      );
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (items.length === 0) return open + close;
  return `${open}\n${items.join(",\n")},\n${" ".repeat(indent)}${close}`;
}
