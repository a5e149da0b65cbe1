/** The answers of a request, each in a panel of its own. */

import { Alternatives } from "./alternatives.js";
import { Answer } from "./answer.js";
import { element } from "./dom.js";
import { TokenView } from "./tokens.js";

const REASONS = {
  stop: "ended by itself or by a stop",
  length: "reached max_tokens",
  tool_calls: "calls a tool",
};

/** One choice: its answer, how that is shown, and what it was before it was regenerated. */
class Panel {
  #earlier = [];

  constructor(index, { many, opened, copied, restored }) {
    this.opened = opened;
    this.title = many ? `Choice ${index + 1}` : "Answer";
    this.reason = element("span", { className: "reason" });
    this.keep = element("input", { type: "radio", name: "kept", checked: index === 0 });
    this.keepLabel = element("label", { className: "keep", hidden: true }, this.keep, " Go on with this one");
    this.undo = element("button", { type: "button", className: "quiet", hidden: true }, "Undo");
    this.undo.setAttribute("aria-label", `Undo: ${this.title} as it was before it was regenerated`);
    this.undo.addEventListener("click", () => {
      restored();
      this.#show(this.#earlier.pop());
      this.undo.hidden = this.#earlier.length === 0;
    });
    const copy = element("button", { type: "button", className: "quiet", "aria-label": `Copy text of ${this.title}` }, "Copy text");
    copy.addEventListener("click", () => copied(this.answer.text));
    this.calls = element("pre", { className: "calls", hidden: true });
    const head = element("div", { className: "panel-head" }, element("h3", {}, this.title), this.reason, this.keepLabel, this.undo, copy);
    this.slot = element("div", {});
    this.node = element("article", { className: "panel" }, head, this.slot, this.calls);
    this.#show(new Answer(index));
  }

  push(choice, promptIds) {
    const { text, tokens } = this.answer.push(choice, promptIds);
    if (tokens.length > 0) this.view.addTokens(tokens);
    else this.view.addText(text);
    this.#showEnd();
  }

  /** Go on from a part of the answer; what it was can be had back. */
  branch(position, alternative, ends) {
    this.#earlier.push(this.answer);
    this.undo.hidden = false;
    this.#show(this.answer.branch(position, alternative, ends));
    // The token that the focus was on is gone.
    (this.view.token(position) ?? this.view.token(position - 1))?.focus({ preventScroll: true });
  }

  end() {
    this.view.flush();
  }

  #show(answer) {
    this.answer = answer;
    this.view = new TokenView(`Text of ${this.title}`, (position, node) => this.opened(this, position, node));
    this.slot.replaceChildren(this.view.node);
    if (answer.tokens.length > 0) this.view.addTokens(answer.tokens);
    else this.view.addText(answer.text);
    this.view.flush();
    this.#showEnd();
  }

  #showEnd() {
    const { finishReason, calls } = this.answer;
    this.reason.textContent = finishReason ?? "";
    this.reason.title = REASONS[finishReason] ?? "";
    this.calls.hidden = calls.length === 0;
    this.calls.textContent = calls.map((call) => `${call.name}(${call.arguments})`).join("\n");
  }
}

export class Answers {
  #panels = new Map();
  #container;
  #callbacks;
  #chat = false;
  #alternatives = new Alternatives();

  /**
   * `refusal()` says why nothing can be regenerated now, if so; `regenerate(panel, position, alternative)` does;
   * `restored()` is told of an undo, `copied(text)` of a text to copy.
   */
  constructor(container, callbacks) {
    this.#container = container;
    this.#callbacks = callbacks;
  }

  get alternativesOpen() {
    return this.#alternatives.open;
  }

  get all() {
    return [...this.#panels.values()];
  }

  /** The answer that a conversation goes on with; undefined where there is none, or no text in it. */
  get kept() {
    if (!this.#chat) return undefined;
    const panel = this.all.find(({ keep }) => keep.checked) ?? this.all[0];
    return panel?.answer.text ? panel.answer : undefined;
  }

  /** Begin anew, for so many choices. */
  begin(count, { chat }) {
    this.#alternatives.close();
    this.#chat = chat;
    this.#panels.clear();
    this.#container.replaceChildren();
    this.#container.classList.toggle("many", count > 1);
    for (let index = 0; index < count; index += 1) {
      const panel = this.#panel(index, count > 1);
      panel.keepLabel.hidden = !(chat && count > 1);
    }
  }

  panelOf(index) {
    return this.#panels.get(index) ?? this.#panel(index, true);
  }

  end() {
    for (const panel of this.all) panel.end();
  }

  #panel(index, many) {
    const panel = new Panel(index, {
      many,
      opened: (own, position, node) => this.#open(own, position, node),
      copied: (text) => this.#callbacks.copied(text),
      restored: () => {
        this.#alternatives.close();
        this.#callbacks.restored();
      },
    });
    this.#panels.set(index, panel);
    this.#container.append(panel.node);
    return panel;
  }

  #open(panel, position, node) {
    this.#alternatives.show(panel.answer.tokens[position], node, {
      refusal: this.#callbacks.refusal(),
      regenerate: (alternative) => this.#callbacks.regenerate(panel, position, alternative),
    });
  }
}
