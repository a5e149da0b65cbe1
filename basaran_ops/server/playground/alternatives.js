/** The panel over a token: what else could have stood there, and going on from it. */

import { byId, element, percent, visible } from "./dom.js";

export class Alternatives {
  #panel = byId("alternatives");
  #token = null;

  constructor() {
    byId("close-alternatives").addEventListener("click", () => this.#panel.hidePopover());
    this.#panel.addEventListener("toggle", ({ newState }) => {
      this.#token?.classList.toggle("open", newState === "open");
      const lost = document.activeElement === document.body || this.#panel.contains(document.activeElement);
      if (newState === "closed" && lost) this.#token?.focus({ preventScroll: true });
    });
  }

  get open() {
    return this.#panel.matches(":popover-open");
  }

  close() {
    if (this.open) this.#panel.hidePopover();
  }

  /**
   * Show a token's alternatives beside its node. `regenerate(alternative)` goes on from the one chosen, or
   * without one from the text before the token; `refusal` says why neither can be.
   */
  show(token, node, { regenerate, refusal }) {
    this.close();
    this.#token?.classList.remove("open");
    this.#token = node;
    node.classList.add("open");
    const own = token.top.find(({ id }) => id === token.id);
    const name = token.text || own?.text || "no text";
    const known = token.logprob !== null;
    byId("alternatives-title").replaceChildren(
      element("code", {}, visible(name)),
      known ? ` ${percent(token.logprob)}` : "",
    );
    byId("alternatives-facts").textContent = known
      ? `Token ${token.id}, log-probability ${token.logprob.toFixed(4)}.`
      : `Token ${token.id}, the prompt's first: nothing predicts it.`;
    const choose = (alternative) => {
      this.close();
      regenerate(alternative);
    };
    byId("alternatives-list").replaceChildren(
      ...token.top.map((alternative) => entry(alternative, alternative.id === token.id, refusal ? null : choose)),
    );
    byId("alternatives-note").textContent = refusal ?? "Choose one to keep the text before it and go on from there.";
    const again = byId("regenerate");
    again.hidden = Boolean(refusal);
    again.onclick = () => choose(null);
    this.#panel.showPopover();
    this.#place(node);
    (this.#panel.querySelector("li button:not([disabled])") ?? byId("close-alternatives")).focus();
  }

  /** Below the token, or above it where there is more room; a small screen has it at its bottom. */
  #place(node) {
    const { style } = this.#panel;
    if (matchMedia("(max-width: 40rem)").matches) {
      style.removeProperty("left");
      style.removeProperty("top");
      return;
    }
    const [token, panel] = [node.getClientRects()[0] ?? node.getBoundingClientRect(), this.#panel.getBoundingClientRect()];
    const left = Math.min(Math.max(8, token.left - 12), innerWidth - panel.width - 8);
    const below = token.bottom + 8;
    const top = below + panel.height > innerHeight ? Math.max(8, token.top - panel.height - 8) : below;
    style.setProperty("left", `${left}px`);
    style.setProperty("top", `${top}px`);
  }
}

function entry(alternative, chosen, choose) {
  const share = percent(alternative.logprob);
  const bar = element("span", { className: "share", "aria-hidden": "true" });
  bar.style.setProperty("--share", Math.exp(alternative.logprob).toFixed(4));
  const button = element(
    "button",
    {
      type: "button",
      className: "alternative",
      disabled: choose === null,
      "aria-current": chosen ? "true" : undefined,
    },
    element("code", {}, visible(alternative.text) || "·"),
    bar,
    " ",
    element("span", { className: "percent" }, share),
    ...(chosen ? [element("span", { className: "hidden-label" }, " (chosen)")] : []),
  );
  if (choose) button.addEventListener("click", () => choose(alternative));
  return element("li", {}, button);
}
