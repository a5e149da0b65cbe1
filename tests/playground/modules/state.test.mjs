import assert from "node:assert/strict";
import { test } from "node:test";

import { freshState, fromFragment, LONGEST, toFragment } from "../../../basaran_ops/server/playground/state.js";

const KNOWN = ["temperature", "stop", "logit_bias", "seed", "suffix", "add_generation_prompt"];

const FULL = {
  mode: "chat",
  model: "org/model & more",
  input: 'a + b = #1? "50%"\n<script>🦜</script>',
  messages: [
    { role: "system", content: "Be\nbrief & kind = good" },
    { role: "user", content: "" },
  ],
  stream: false,
  alternatives: null,
  values: {
    temperature: 0, stop: ["\n", "a,b"], logit_bias: { 42: -100 }, seed: -1, suffix: "42", add_generation_prompt: false,
  },
};

test("a state comes back from the address as it went in", () => {
  for (const state of [freshState(), FULL, { ...freshState(), input: "x", alternatives: 0 }]) {
    const { fragment, complete } = toFragment(state);
    assert.ok(complete);
    assert.deepEqual(fromFragment(fragment, KNOWN), state);
  }
});

test("an address survives being read by a URL parser", () => {
  const { fragment } = toFragment(FULL);
  const url = new URL(`https://host.example/prefix/${fragment}`);
  assert.equal(url.pathname, "/prefix/");
  assert.equal(url.search, "");
  assert.deepEqual(fromFragment(url.hash, KNOWN), FULL);
});

test("what an address tells wrongly is fresh", () => {
  const fresh = freshState();
  const wrong = [
    "", "#", "#%", "#nonsense", "#mode=shell", "#messages=1", '#messages={"a":1}', "#messages=[1,null,{}]",
    '#messages=[{"role":"user","content":7}]', "#temperature=hot", "#temperature=", "#alternatives=many",
    "#alternatives=-1", "#temperature=null",
  ];
  for (const fragment of wrong) assert.deepEqual(fromFragment(fragment, KNOWN), fresh, fragment);
});

test("parameters that nobody knows are left out, those of objects too", () => {
  const { values } = fromFragment('#__proto__={"a":1}&constructor=1&apiKey="k"&seed=1', KNOWN);
  assert.deepEqual(values, { seed: 1 });
  assert.equal({}.a, undefined);
});

test("texts too long for an address are left out, the settings stay", () => {
  const long = { ...FULL, input: "x".repeat(LONGEST) };
  const { fragment, complete } = toFragment(long);
  assert.ok(!complete);
  assert.ok(fragment.length < 1000);
  assert.deepEqual(fromFragment(fragment, KNOWN), { ...FULL, input: "", messages: [] });
});

test("a key that a state would have is not told", () => {
  assert.ok(!toFragment({ ...FULL, key: "the-key", apiKey: "the-key" }).fragment.includes("the-key"));
});
