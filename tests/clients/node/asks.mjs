// What OpenAI's client for Node makes of the server's answers, as JSON in the file named last:
// node asks.mjs URL NARROW_URL FILE
import { writeFileSync } from "node:fs";
import OpenAI from "openai";

const [url, narrowUrl, file] = process.argv.slice(2);
const { PROMPT, QUESTION, GREEDY, SEEDED } = JSON.parse(process.env.ASKED);
const model = "org/tiny";
const patience = { maxRetries: 0, timeout: 120_000 };
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", ...patience });
const narrow = new OpenAI({ baseURL: `${narrowUrl}/v1`, apiKey: "the-key", ...patience });
const endless = { model, prompt: PROMPT, max_tokens: 30000 };

const all = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

const refusal = async (asking) => {
  try {
    await asking;
    return null;
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { kind: error.constructor.name, status, code, param, type, requestID };
  }
};

// How many sequences the narrow server has, once that is `wanted` or after ten seconds.
const outstanding = async (wanted) => {
  for (let tries = 0; ; tries++) {
    const health = await (await fetch(`${narrowUrl}/health`)).json();
    if (health.outstanding === wanted || tries === 200) return health.outstanding;
    await new Promise((later) => setTimeout(later, 50));
  }
};

const asks = {
  completion: () => client.completions.create({ model, prompt: PROMPT, ...GREEDY }),
  completionStreamed: async () =>
    all(
      await client.completions.create({
        model,
        prompt: PROMPT,
        ...SEEDED,
        stream: true,
        stream_options: { include_usage: true },
      }),
    ),
  chat: () => client.chat.completions.create({ model, messages: QUESTION, ...GREEDY }),
  chatStreamed: async () =>
    all(await client.chat.completions.create({ model, messages: QUESTION, ...SEEDED, stream: true })),
  // The client's own accumulator: it refuses choices without a role or without a finish_reason.
  chatAccumulated: () =>
    client.chat.completions
      .stream({ model, messages: QUESTION, ...SEEDED, stream_options: { include_usage: true } })
      .finalChatCompletion(),
  models: async () => all(client.models.list()),
  model: () => client.models.retrieve("org/tiny"),
  badParameter: () => refusal(client.completions.create({ model, prompt: PROMPT, temperature: 5 })),
  tooLong: () =>
    refusal(client.chat.completions.create({ model, messages: [{ role: "user", content: "cat ".repeat(600) }] })),
  noSuchModel: () => refusal(client.models.retrieve("org/none")),
  wrongModel: () => refusal(narrow.completions.create({ ...endless, model: "org/none" })),
  wrongKey: () => refusal(narrow.withOptions({ apiKey: "another" }).models.list()),
  aborted: async () => {
    const stream = await narrow.completions.create({ ...endless, stream: true });
    let during;
    for await (const _ of stream) {
      during ??= await outstanding(1);
      // The client goes on with what had come by then, if anything.
      stream.controller.abort();
    }
    return { during, after: await outstanding(0) };
  },
  leftByBreak: async () => {
    const stream = await narrow.completions.create({ ...endless, stream: true });
    let during;
    for await (const _ of stream) {
      during = await outstanding(1);
      break;
    }
    return { during, after: await outstanding(0) };
  },
  timedOut: async () => {
    const error = await refusal(narrow.completions.create(endless, { timeout: 500 }));
    return { kind: error?.kind, after: await outstanding(0) };
  },
};

const found = {};
for (const [name, ask] of Object.entries(asks)) {
  try {
    found[name] = await ask();
  } catch (error) {
    found[name] = { failed: error.stack };
  }
}
writeFileSync(file, JSON.stringify(found));
