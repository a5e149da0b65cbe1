import assert from "node:assert/strict";
import { test } from "node:test";

import { Answer } from "../../../basaran_ops/server/playground/answer.js";

const utf8 = (text) => [...new TextEncoder().encode(text)];

function completion(entries, more = {}) {
  return {
    text: entries.map(([text]) => text).join(""),
    index: 0,
    logprobs: {
      tokens: entries.map(([text]) => text),
      token_logprobs: entries.map(([, , logprob]) => logprob),
      top_logprobs: entries.map(([text, , logprob]) => (logprob === null ? null : { [text]: logprob, 7: -5, x: -9 })),
      top_token_ids: entries.map(([text, id, logprob]) => (logprob === null ? null : { [text]: id, 7: 70, x: 80 })),
      text_offset: entries.map(() => 0),
    },
    token_ids: entries.map(([, id]) => id),
    finish_reason: null,
    ...more,
  };
}

test("a completion's tokens have their ids, and their alternatives the likeliest first", () => {
  const answer = new Answer(0);
  answer.push(completion([["a", 1, -1], ["b", 2, -0.1]]), [5, 6]);
  answer.push(completion([["c", 3, -3]], { finish_reason: "length" }));
  assert.equal(answer.text, "abc");
  assert.deepEqual(answer.tokens.map(({ id }) => id), [1, 2, 3]);
  assert.deepEqual(answer.tokens[0].top.map(({ text, id }) => [text, id]), [["a", 1], ["7", 70], ["x", 80]]);
  assert.equal(answer.finishReason, "length");
  assert.deepEqual(answer.idsBefore(2), [5, 6, 1, 2]);
});

test("an echoed prompt's tokens have the prompt's ids", () => {
  const answer = new Answer(0);
  const echo = completion([["P", 5, null], ["Q", 6, -1], ["a", 1, -1]], { token_ids: [1] });
  answer.push(echo, [5, 6]);
  assert.deepEqual(answer.tokens.map(({ id, generated }) => [id, generated]), [[5, false], [6, false], [1, true]]);
  assert.deepEqual(answer.idsBefore(1), [5]);
  assert.deepEqual(answer.idsBefore(3), [5, 6, 1]);
  const branch = answer.branch(1, { text: "R", id: 9, logprob: -2 });
  assert.deepEqual([...branch.promptIds, ...branch.ids], [5, 9]);
  assert.equal(branch.text, "PR");
});

test("a branch keeps what comes before and goes on from the alternative", () => {
  const answer = new Answer(0);
  answer.push(completion([["a", 1, -1], ["b", 2, -1], ["c", 3, -1]]), [5]);
  const branch = answer.branch(1, { text: "x", id: 80, logprob: -9 });
  assert.deepEqual([...branch.promptIds, ...branch.ids], [5, 1, 80]);
  assert.equal(branch.text, "ax");
  assert.ok(branch.tokens[1].picked);
  branch.push(completion([["d", 4, -1]]), null);
  assert.equal(branch.text, "axd");
  assert.deepEqual(branch.idsBefore(3), [5, 1, 80, 4]);
  const before = answer.branch(2, null);
  assert.deepEqual([before.text, ...before.idsBefore(2)], ["ab", 5, 1, 2]);
  assert.equal(answer.text, "abc");
});

function chat(content, entries) {
  return {
    delta: { content },
    index: 0,
    token_ids: entries.map(([, id]) => id),
    logprobs: {
      content: entries.map(([token, id, bytes]) => ({
        token, token_id: id, logprob: -1, bytes: bytes ?? utf8(token), top_logprobs: [{ token, token_id: id, logprob: -1 }],
      })),
    },
  };
}

test("a chat's tokens joined are its content, a character in several tokens and an end's name included", () => {
  const [one, two] = [utf8("🦜").slice(0, 2), utf8("🦜").slice(2)];
  const answer = new Answer(0);
  answer.push(chat("a", [["a", 1]]), [5]);
  answer.push(chat("🦜b<|end|>", [["\ufffd", 2, one], ["\ufffd", 3, two], ["b", 4], ["<|end|>", 6]]));
  answer.push(chat("", [["<|end|>", 0]]));
  assert.deepEqual(answer.tokens.map(({ text }) => text), ["a", "", "🦜", "b", "<|end|>", ""]);
  assert.equal(answer.tokens.map(({ text }) => text).join(""), answer.text);
});

test("the token that ended a text ends its branch too, and any that is said to", () => {
  const answer = new Answer(0);
  answer.push(completion([["a", 1, -1], ["", 0, -1]], { finish_reason: "stop" }), [5]);
  const end = { text: "<|end|>", id: 0, logprob: -1 };
  assert.ok(answer.endsWith(1, end));
  assert.ok(!answer.endsWith(0, end));
  assert.ok(!answer.endsWith(1, { text: "x", id: 80, logprob: -9 }));
  const branch = answer.branch(0, end, true);
  assert.deepEqual([branch.text, branch.finishReason, branch.tokens.length], ["", "stop", 1]);
});

test("calls of tools come in pieces", () => {
  const answer = new Answer(0);
  const piece = (told, index = 0) => ({ delta: { tool_calls: [{ index, function: told }] } });
  for (const told of [{ name: "f" }, { arguments: '{"a"' }, { arguments: ":1}" }]) answer.push(piece(told));
  answer.push(piece({ name: "g", arguments: "{}" }, 1));
  assert.deepEqual(answer.calls, [{ name: "f", arguments: '{"a":1}' }, { name: "g", arguments: "{}" }]);
});
