/**
 * Server-sent events out of bytes, however those are cut.
 * Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, of which OpenAI's streams use `data`.
 */
export class EventParser {
  #decoder = new TextDecoder(); // leaves out a byte order mark, keeps the bytes of an unfinished character
  #rest = "";
  #data = [];

  /** The data of each event that these bytes complete. */
  push(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const events = [];
    let start = 0;
    for (;;) {
      const line = nextLine(this.#rest, start);
      if (line === null) break;
      start = line.next;
      this.#take(line.text, events);
    }
    this.#rest = this.#rest.slice(start);
    return events;
  }

  #take(line, events) {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    if (name !== "data") return; // a comment, or a field that says nothing of the text
    const value = colon < 0 ? "" : line.slice(colon + 1);
    this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
  }
}

/** The line that begins at `start` and where the next one does; null while its end is not there. */
function nextLine(text, start) {
  for (let end = start; end < text.length; end += 1) {
    const character = text[end];
    if (character === "\n") return { text: text.slice(start, end), next: end + 1 };
    if (character === "\r") {
      if (end + 1 === text.length) return null; // a line feed may follow
      return { text: text.slice(start, end), next: end + (text[end + 1] === "\n" ? 2 : 1) };
    }
  }
  return null;
}
