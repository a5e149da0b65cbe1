import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser } from "../../../basaran_ops/server/playground/sse.js";

const bytes = (text) => new TextEncoder().encode(text);

function parsed(stream, size) {
  const parser = new EventParser();
  const events = [];
  for (let start = 0; start < stream.length; start += size) events.push(...parser.push(stream.slice(start, start + size)));
  return events;
}

const TEXTS = ["plain", "Zürich, 東京, 🦜 and e\u0301", '{"text": "a\\n\\nb"}', " leading", ""];
const STREAM = bytes(TEXTS.map((text) => `data: ${text}\n\n`).join(": keep-alive\n\n"));

test("events are the same however the bytes are cut", () => {
  for (let size = 1; size <= STREAM.length; size += 1) assert.deepEqual(parsed(STREAM, size), TEXTS, `${size} bytes`);
});

test("all three line ends will do, also where a chunk ends between two characters of one", () => {
  for (const end of ["\n", "\r\n", "\r"]) {
    const stream = bytes(["data: 1", "data: 2", "", "data: 3", "", ": after", ""].join(end));
    for (let size = 1; size <= stream.length; size += 1) assert.deepEqual(parsed(stream, size), ["1\n2", "3"]);
  }
});

test("comments and other fields are no events, and one space after the colon is none of the data", () => {
  const stream = bytes(": hello\n\nevent: x\nid: 3\nretry: 9\n\ndata:a\n\ndata:  b\n\ndata\n\ndatum: c\n\n");
  assert.deepEqual(parsed(stream, 7), ["a", " b", ""]);
});

test("a byte order mark is left out", () => {
  assert.deepEqual(parsed(new Uint8Array([0xef, 0xbb, 0xbf, ...bytes("data: x\n\n")]), 2), ["x"]);
});

test("an event without its blank line is not there yet", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push(bytes("data: x\n")), []);
  assert.deepEqual(parser.push(bytes("\n")), ["x"]);
});

test("an unfinished character waits for its bytes", () => {
  const parser = new EventParser();
  const parrot = bytes("data: 🦜\n\n");
  assert.deepEqual(parser.push(parrot.slice(0, 8)), []);
  assert.deepEqual(parser.push(parrot.slice(8)), ["🦜"]);
});
