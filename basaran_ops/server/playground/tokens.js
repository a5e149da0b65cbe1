/** The text of one answer as tokens that can be walked and opened. */

import { element, percent, visible } from "./dom.js";

/** Least probability of each class, from the surest. Style and legend have one each. */
export const LEVELS = [0.8, 0.5, 0.2, 0.05, 0];

export function levelOf(logprob) {
  const probability = Math.exp(logprob);
  return LEVELS.findIndex((least) => probability >= least);
}

/** Shows tokens in the order they come, at most once a frame, however fast they come. */
export class TokenView {
  #waiting = [];
  #frame = null;
  #focused = 0;

  /** `opened(position, node)` is called when a token is chosen by click or key. */
  constructor(label, opened) {
    this.node = element("div", { className: "tokens", role: "group", "aria-label": label });
    this.node.addEventListener("click", ({ target }) => {
      const token = target.closest(".token");
      if (token) {
        this.#focus(token, false);
        opened(Number(token.dataset.position), token);
      }
    });
    this.node.addEventListener("keydown", (event) => this.#key(event, opened));
    this.count = 0;
  }

  /** Text whose tokens are not known. */
  addText(text) {
    if (text) this.#add(document.createTextNode(text));
  }

  addTokens(tokens) {
    for (const token of tokens) this.#add(this.#make(token));
  }

  /** Show all that waits for the next frame. */
  flush() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    if (this.#waiting.length === 0) return;
    const { node } = this;
    const followed = node.scrollHeight - node.scrollTop - node.clientHeight < 40;
    node.append(...this.#waiting);
    this.#waiting = [];
    // Without tokens to walk it is the box that keys must reach, to scroll it.
    if (this.count === 0) node.tabIndex = 0;
    if (followed) node.scrollTop = node.scrollHeight;
  }

  token(position) {
    return this.node.querySelector(`[data-position="${position}"]`);
  }

  #add(node) {
    this.#waiting.push(node);
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.flush();
    });
  }

  #make({ text, id, logprob, top, picked, generated }) {
    const name = text || top.find((entry) => entry.id === id)?.text || "";
    const known = logprob !== null;
    const classes = ["token", known ? `level-${levelOf(logprob)}` : "unknown"];
    if (picked) classes.push("picked");
    if (!generated) classes.push("echoed");
    if (text === "") classes.push("silent");
    else if (/^[\r\n]/.test(text)) classes.push("break");
    const said = `${visible(name) || "no text"}, ${known ? percent(logprob) : "first token"}`;
    return element(
      "span",
      {
        className: classes.join(" "),
        role: "button",
        tabIndex: this.count === 0 ? 0 : -1,
        title: said,
        "aria-label": said,
        "aria-haspopup": "dialog",
        dataset: { position: this.count++, ...(text === "" ? { name: visible(name) || "·" } : {}) },
      },
      text,
    );
  }

  #key(event, opened) {
    const token = event.target.closest(".token");
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") opened(Number(token.dataset.position), token);
    else if (event.key in MOVES) this.#focus(MOVES[event.key](token, this.node) ?? token, true);
    else return;
    event.preventDefault();
  }

  /** One token is reached by Tab; the arrows lead to the others. */
  #focus(token, move) {
    this.token(this.#focused)?.setAttribute("tabindex", "-1");
    this.#focused = Number(token.dataset.position);
    token.setAttribute("tabindex", "0");
    if (move) token.focus();
  }
}

const MOVES = {
  ArrowRight: (token) => token.nextElementSibling,
  ArrowLeft: (token) => token.previousElementSibling,
  ArrowDown: (token) => onOtherLine(token, "nextElementSibling"),
  ArrowUp: (token) => onOtherLine(token, "previousElementSibling"),
  Home: (token, all) => all.firstElementChild,
  End: (token, all) => all.lastElementChild,
};

/** The token of the next line in a direction that is nearest to this one. */
function onOtherLine(token, direction) {
  const from = token.getBoundingClientRect();
  let best = null;
  let line = null;
  for (let other = token[direction]; other; other = other[direction]) {
    const { left, top, height } = other.getBoundingClientRect();
    if (height === 0 || Math.abs(top - from.top) < 2) continue;
    line ??= top;
    if (Math.abs(top - line) >= 2) break;
    const distance = Math.abs(left - from.left);
    if (best === null || distance < best.distance) best = { other, distance };
  }
  return best?.other;
}

/** The legend's entries: what is drawn under and behind the text of each class. */
export function legendEntries() {
  return LEVELS.map((least, level) => {
    const most = level === 0 ? 1 : LEVELS[level - 1];
    const range = level === 0 ? `${least * 100}% or more` : `${least * 100}–${most * 100}%`;
    return element("li", {}, element("span", { className: `token level-${level}` }, range));
  });
}
