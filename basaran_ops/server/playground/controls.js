/** The controls of a request's parameters, made from what the server says of each. */

import { element } from "./dom.js";
import { ELSEWHERE, GROUPS, HELP, REST, TYPED } from "./parameters.js";

/**
 * Controls for all fields that are set here. `changed` is called after each change; `values` are what is set
 * and differs from silence, by the field's name.
 */
export class Controls {
  #controls = new Map();
  #groups = [];
  #changed;

  constructor(container, modes, changed) {
    this.#changed = changed;
    const fields = new Map(Object.values(modes).flatMap((of) => [...of]));
    const offered = [...fields.values()].filter(({ name, kind }) => kind !== "none" && !ELSEWHERE.has(name));
    const grouped = new Set(GROUPS.flatMap(({ names }) => names));
    const rest = offered.filter(({ name }) => !grouped.has(name)).map(({ name }) => name);
    for (const { title, names, open } of [...GROUPS, { title: REST, names: rest }]) {
      const here = names.map((name) => fields.get(name)).filter((field) => offered.includes(field));
      if (here.length === 0) continue;
      const made = here.map((field) => this.#add(field, modes));
      const group = element("details", { className: "group", open: Boolean(open) }, element("summary", {}, title), ...made);
      this.#groups.push(group);
      container.append(group);
    }
  }

  #add(field, modes) {
    const control = new Control(field, () => this.#changed());
    control.modes = Object.keys(modes).filter((mode) => modes[mode].has(field.name));
    this.#controls.set(field.name, control);
    return control.node;
  }

  get names() {
    return [...this.#controls.keys()];
  }

  get values() {
    const set = [...this.#controls].map(([name, control]) => [name, control.value]);
    return Object.fromEntries(set.filter(([, value]) => value !== undefined));
  }

  set values(values) {
    for (const [name, control] of this.#controls) control.value = values[name];
    for (const group of this.#groups) {
      if ([...this.#controls].some(([name, { node }]) => values[name] !== undefined && group.contains(node))) {
        group.open = true;
      }
    }
  }

  /** Show what the endpoint of a mode takes. */
  showMode(mode) {
    for (const control of this.#controls.values()) control.node.hidden = !control.modes.includes(mode);
    for (const group of this.#groups) group.hidden = !group.querySelector(":scope > .control:not([hidden])");
  }

  /** A bound that is known only once the model is: its context's. */
  limit(name, maximum) {
    this.#controls.get(name)?.limit(maximum);
  }

  /** The control of a field, opened to be seen. */
  reveal(name) {
    const control = this.#controls.get(name);
    if (control) control.node.closest("details").open = true;
    return control?.input;
  }

  /** Mark the field that the server found fault with, and no other. */
  blame(name) {
    for (const [own, { input }] of this.#controls) {
      if (own === name) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  }
}

/** One labelled control. Its value is undefined where nothing is to be sent. */
class Control {
  constructor(field, changed) {
    this.field = field;
    const id = `parameter-${field.name}`;
    const hint = element("p", { className: "hint", id: `${id}-hint` }, HELP.get(field.name) ?? "");
    this.input = makeInput(field, id);
    this.input.setAttribute("aria-describedby", `${id}-hint`);
    this.input.addEventListener("input", () => {
      this.#follow();
      changed();
    });
    const label = element("label", { for: id }, element("code", {}, field.name));
    this.range = element("span", { className: "range-text" });
    hint.append(" ", this.range);
    const head = element("div", { className: "head" }, label);
    this.node = element("div", { className: "control", dataset: { parameters: field.name } }, head);
    if (isNumber(field)) {
      head.append(this.input);
      this.slider = element("input", { type: "range", tabIndex: -1, "aria-hidden": "true" });
      this.slider.addEventListener("input", () => {
        this.input.value = this.slider.value;
        this.input.removeAttribute("aria-invalid");
        changed();
      });
      this.node.append(this.slider);
      this.limit(field.maximum);
    } else if (field.kind === "boolean") {
      head.append(this.input);
    } else {
      this.node.append(this.input);
    }
    if (field.name === "max_tokens") this.node.dataset.parameters += " max_completion_tokens";
    this.node.append(hint);
  }

  /** Set the largest value. */
  limit(maximum) {
    const { minimum, kind, name } = this.field;
    if (maximum !== undefined) this.input.max = maximum;
    this.range.textContent = rangeText(minimum, maximum);
    const slides = minimum !== undefined && maximum !== undefined && !TYPED.has(name);
    this.slider.hidden = !slides;
    if (slides) {
      const step = kind === "integer" ? 1 : 0.01;
      Object.assign(this.slider, { min: minimum, max: maximum, step });
      this.#follow();
    }
  }

  get value() {
    const { kind } = this.field;
    if (kind === "boolean" && this.input.type === "checkbox") return this.input.checked || undefined;
    const text = this.input.value;
    if (text === "") return undefined;
    return READ[kind](text);
  }

  set value(value) {
    if (this.input.type === "checkbox") this.input.checked = Boolean(value);
    else this.input.value = value === undefined ? "" : WRITTEN[this.field.kind](value);
    this.#follow();
  }

  #follow() {
    this.input.removeAttribute("aria-invalid");
    this.input.setCustomValidity?.("");
    if (this.slider) this.slider.value = this.input.value || (this.field.fallback ?? this.field.minimum);
  }
}

const isNumber = ({ kind }) => kind === "number" || kind === "integer";

function makeInput({ kind, fallback, minimum }, id) {
  if (kind === "boolean" && fallback === false) return element("input", { id, type: "checkbox" });
  if (kind === "boolean") {
    const options = [["", "default"], ["true", "yes"], ["false", "no"]];
    return element("select", { id }, ...options.map(([value, text]) => element("option", { value }, text)));
  }
  if (kind === "number" || kind === "integer") {
    const placeholder = fallback === null ? "unset" : String(fallback);
    const step = kind === "integer" ? 1 : "any";
    return element("input", { id, type: "number", inputMode: "decimal", step, placeholder, min: minimum });
  }
  if (kind === "texts" || kind === "json") return element("textarea", { id, rows: 2, spellcheck: false });
  return element("input", { id, type: "text", spellcheck: false });
}

function rangeText(minimum, maximum) {
  if (minimum === undefined && maximum === undefined) return "";
  if (maximum === undefined) return `From ${minimum}.`;
  if (Math.abs(maximum) > 1e9) return "Any whole number.";
  return `${minimum} to ${maximum}.`;
}

/** From a control's text to what is sent. What cannot be read is sent as it stands: the server says what is wrong. */
const READ = {
  number: Number,
  integer: Number,
  boolean: (text) => text === "true",
  text: (text) => text,
  texts: (text) => text.split("\n").filter(Boolean).map(unescaped),
  integers: (text) => text.split(",").map((part) => (/^\s*-?\d+\s*$/.test(part) ? Number(part) : part.trim())),
  json: (text) => {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  },
};

const WRITTEN = {
  number: String,
  integer: String,
  boolean: String,
  text: String,
  texts: (value) => [value].flat().map((text) => escaped(String(text))).join("\n"),
  integers: (value) => [value].flat().join(", "),
  json: (value) => (typeof value === "string" ? value : JSON.stringify(value)),
};

const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\" };

export function unescaped(text) {
  return text.replace(/\\[ntr\\]/g, (escape) => ESCAPES[escape]);
}

export function escaped(text) {
  return text.replace(/[\n\t\r\\]/g, (character) => Object.keys(ESCAPES).find((key) => ESCAPES[key] === character));
}
