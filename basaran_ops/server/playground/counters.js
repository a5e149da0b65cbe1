/** How many tokens, how fast. */

import { byId } from "./dom.js";

export class Counters {
  #timer = null;

  start() {
    this.started = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
    this.after = 0;
    this.usage = null;
    this.#show();
    this.#timer = setInterval(() => this.#show(), 200);
  }

  /** Tokens have come. */
  count(tokens) {
    if (tokens === 0) return;
    this.last = performance.now();
    // Those that came first show when the answer began, not how fast it goes.
    if (this.first === null) this.first = this.last;
    else this.after += tokens;
    this.tokens += tokens;
  }

  /** All has come, or all that will. `whole`: it came in one piece, so that nothing is known of its beginning. */
  end({ whole }) {
    clearInterval(this.#timer);
    this.ended = performance.now();
    if (whole) this.first = null;
    this.#show(true);
  }

  /** Tokens a second: between the first and the last, or of the whole time where they came at once. */
  get speed() {
    if (this.first === null) return this.tokens / seconds(this.started, this.ended ?? performance.now());
    return this.after > 0 ? this.after / seconds(this.first, this.last) : null;
  }

  get total() {
    return seconds(this.started, this.ended ?? performance.now());
  }

  #show(ended = false) {
    if (!ended) this.ended = null;
    const prompt = this.usage?.prompt_tokens;
    const completion = this.usage?.completion_tokens ?? this.tokens;
    byId("count-prompt").textContent = prompt === undefined ? "–" : tokensText(prompt);
    byId("count-completion").textContent = tokensText(completion);
    byId("speed").textContent = this.tokens > 0 && this.speed ? `${this.speed.toFixed(1)} tokens/s` : "–";
    byId("first-token").textContent = this.first === null ? "–" : `${Math.round(this.first - this.started)} ms`;
    byId("total-time").textContent = `${this.total.toFixed(1)} s`;
  }
}

function seconds(from, to) {
  return Math.max(to - from, 1) / 1000;
}

export function tokensText(count) {
  return `${count} ${count === 1 ? "token" : "tokens"}`;
}
