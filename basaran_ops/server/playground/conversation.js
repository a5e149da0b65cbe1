/** The messages of a conversation, each to be changed in place. */

import { byId, element } from "./dom.js";

const ROLES = ["system", "user", "assistant", "developer", "tool"];

export class Conversation {
  #list = byId("messages");
  #changed;

  /** `changed` is called after each change. */
  constructor(changed) {
    this.#changed = changed;
    byId("add-message").addEventListener("click", () => {
      const last = this.messages.at(-1)?.role;
      const item = this.#add({ role: last === undefined ? "system" : last === "user" ? "assistant" : "user", content: "" });
      item.querySelector("textarea").focus();
      changed();
    });
  }

  get messages() {
    return [...this.#list.children].map((item) => ({
      role: item.querySelector("select").value,
      content: item.querySelector("textarea").value,
    }));
  }

  set messages(messages) {
    this.#list.replaceChildren();
    for (const message of messages) this.#add(message);
  }

  #add({ role, content }) {
    const roles = ROLES.includes(role) ? ROLES : [...ROLES, role];
    const select = element(
      "select",
      { "aria-label": "Role" },
      ...roles.map((name) => element("option", { value: name, selected: name === role }, name)),
    );
    const text = element("textarea", { rows: 1, value: content, spellcheck: false, "aria-label": "Message" });
    const remove = element("button", { type: "button", className: "quiet", "aria-label": "Remove this message" }, "Remove");
    const item = element("li", { className: "message", dataset: { role } }, select, text, remove);
    item.addEventListener("input", () => {
      item.dataset.role = select.value;
      this.#changed();
    });
    remove.addEventListener("click", () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      (next?.querySelector("textarea") ?? byId("input")).focus();
      this.#changed();
    });
    this.#list.append(item);
    return item;
  }
}
