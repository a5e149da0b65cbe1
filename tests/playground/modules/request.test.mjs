import assert from "node:assert/strict";
import { test } from "node:test";

import { buildContinuation, buildRequest, forPage } from "../../../basaran_ops/server/playground/request.js";
import { applyPreset, fitPresets, presetOf, PRESETS } from "../../../basaran_ops/server/playground/presets.js";
import { asksForKey, requestFields } from "../../../basaran_ops/server/playground/schema.js";
import { freshState } from "../../../basaran_ops/server/playground/state.js";

// The server's own description, in a file.
const { default: description } = await import(process.env.DESCRIPTION, { with: { type: "json" } });
const FIELDS = {
  prompt: requestFields(description, "CompletionRequest"),
  chat: requestFields(description, "ChatRequest"),
};

test("ranges, defaults and kinds are the server's", () => {
  const { prompt, chat } = FIELDS;
  const picked = ({ kind, minimum, maximum, fallback }) => [kind, minimum, maximum, fallback];
  assert.deepEqual(picked(prompt.get("temperature")), ["number", 0, 2, 1]);
  assert.deepEqual(picked(prompt.get("n")), ["integer", 1, 16, 1]);
  assert.deepEqual(picked(prompt.get("logprobs")), ["integer", 0, 20, null]);
  assert.deepEqual(picked(prompt.get("seed")).slice(1, 3), [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER]);
  const kinds = { stop: "texts", stop_token_ids: "integers", logit_bias: "json", echo: "boolean", suffix: "text" };
  for (const [name, kind] of Object.entries(kinds)) assert.equal(prompt.get(name).kind, kind, name);
  assert.equal(chat.get("add_generation_prompt").kind, "boolean");
  assert.equal(chat.get("chat_template").kind, "none");
  assert.equal(asksForKey(description), false);
  assert.equal(asksForKey({ security: [{ key: [] }] }), true);
});

test("a request has what is set and nothing else, by the endpoint's own names", () => {
  const state = { ...freshState(), model: "m", input: "Hi", alternatives: 3, values: { max_tokens: 9, echo: true, seed: 0 } };
  assert.deepEqual(buildRequest(state, FIELDS.prompt), {
    path: "v1/completions",
    body: { model: "m", prompt: "Hi", max_tokens: 9, echo: true, seed: 0, logprobs: 3, stream: true },
  });
  const messages = [{ role: "system", content: "Be brief." }];
  assert.deepEqual(buildRequest({ ...state, mode: "chat", messages, stream: false }, FIELDS.chat), {
    path: "v1/chat/completions",
    body: {
      model: "m", messages: [...messages, { role: "user", content: "Hi" }], max_completion_tokens: 9, seed: 0,
      logprobs: true, top_logprobs: 3,
    },
  });
  assert.deepEqual(buildRequest({ ...state, values: {}, alternatives: null }, FIELDS.prompt).body, {
    model: "m", prompt: "Hi", stream: true,
  });
  assert.equal(forPage({ stream: true }).stream_options.include_usage, true);
  assert.equal(forPage({}).stream_options, undefined);
});

test("a continuation has ids for a prompt, one choice, and no more tokens than there is room for", () => {
  const values = { n: 3, best_of: 4, echo: true, suffix: "s", temperature: 0.5, max_tokens: 50, min_tokens: 40 };
  const state = { ...freshState(), model: "m", values };
  const { path, body } = buildContinuation(state, FIELDS.prompt, [1, 2, 3], 20);
  assert.equal(path, "v1/completions");
  assert.deepEqual(body, {
    model: "m", prompt: [1, 2, 3], temperature: 0.5, max_tokens: 17, min_tokens: 17, logprobs: 5, stream: true,
  });
  const chat = { ...freshState(), mode: "chat" };
  assert.equal(buildContinuation(chat, FIELDS.prompt, [1, 2, 3], 20).body.max_tokens, 17);
  assert.equal(buildContinuation(freshState(), FIELDS.prompt, [1, 2, 3], 20).body.max_tokens, 16);
});

test("presets decide alike, are known again, and are within the server's ranges", () => {
  for (const preset of PRESETS) {
    const values = applyPreset(preset, { temperature: 1.9, top_k: 2, stop: ["x"] });
    assert.equal(presetOf(PRESETS, values).id, preset.id);
    assert.deepEqual(values.stop, ["x"]);
    for (const [name, value] of Object.entries(preset.values)) {
      const { minimum, maximum = Infinity } = FIELDS.prompt.get(name);
      assert.ok(minimum <= value && value <= maximum, `${preset.id}: ${name}`);
    }
  }
  assert.equal(presetOf(PRESETS, { temperature: 0.123 }), undefined);
  assert.equal(fitPresets(100)[0].values.max_tokens, 100);
  assert.deepEqual(fitPresets(5000), PRESETS);
});
