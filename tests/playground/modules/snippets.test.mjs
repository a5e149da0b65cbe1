import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

import { asCurl, asPython, pythonLiteral, shellQuoted } from "../../../basaran_ops/server/playground/snippets.js";

const ROOT = new URL("https://host.example/prefix/");

const NASTY = [
  "plain", "it's", "''", '"double"', "$HOME `id` $(id) ${x}", "back\\slash \\n \\\\", "new\nline\ttab\r", "!history!",
  "-leading", "@file", "\u2028\u2029\u0085", "🦜 \u{1F468}\u200D\u{1F469}", "\u0001\u001b[31m\u007f", "{x} %s %%", "#x",
  "</script><!--", "'''\"\"\"", "\ud800 lone",
];

const request = (text) => ({ path: "v1/completions", body: { model: "m", prompt: text, top_k: 3 } });

test("a shell gives back what was quoted", () => {
  for (const text of NASTY.filter((nasty) => nasty.isWellFormed())) {
    assert.equal(execFileSync("sh", ["-c", `printf %s ${shellQuoted(text)}`], { encoding: "utf8" }), text);
  }
});

test("a shell hands curl the address, the headers and the body as they are", () => {
  const stand = 'curl() { for one in "$@"; do printf "%s\\0" "$one"; done; }; OPENAI_API_KEY=the-key\n';
  for (const text of NASTY) {
    const script = stand + asCurl(ROOT, request(text), true);
    const args = execFileSync("sh", ["-c", script], { encoding: "utf8" }).split("\0");
    assert.deepEqual(args.slice(0, 6), [
      "https://host.example/prefix/v1/completions", "-H", "Content-Type: application/json", "-H",
      "Authorization: Bearer the-key", "-d",
    ]);
    assert.deepEqual(JSON.parse(args[6]), request(text).body);
  }
});

test("Python reads a literal as the JSON it was", () => {
  const value = {
    texts: NASTY, numbers: [0, -1, 0.1, 1e21, 1e-7], flags: [true, false, null], empty: [{}, [], ""], "a'b\"": { 1: 2 },
  };
  const program = `import json\nprint(json.dumps(${pythonLiteral(value)}))`;
  const read = execFileSync(process.env.PYTHON, ["-c", program], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(read), value);
});

test("a key is asked for by its variable's name alone", () => {
  const stream = { path: "v1/chat/completions", body: { model: "m", messages: [], stream: true } };
  for (const asked of [request("x"), stream]) {
    assert.match(asCurl(ROOT, asked, true), /Bearer \$OPENAI_API_KEY"/);
    assert.match(asPython(ROOT, asked, true), /os\.environ\["OPENAI_API_KEY"\]/);
    assert.doesNotMatch(asCurl(ROOT, asked, false), /API_KEY/);
    assert.doesNotMatch(asPython(ROOT, asked, false), /API_KEY/);
  }
});
