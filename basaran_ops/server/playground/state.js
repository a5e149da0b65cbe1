/** The page's state, and its place in the address: behind the #, which browsers do not send to servers. */

/** Characters of an address that is kept. Longer ones are cut by what people paste them into. */
export const LONGEST = 16384;

/** What a page shows that was told nothing. */
export function freshState() {
  return { mode: "prompt", model: "", input: "", messages: [], stream: true, alternatives: 5, values: {} };
}

/**
 * The state as a fragment. `complete` is false where its texts are too long for an address: then they are left
 * out, and the settings are there alone. A key is never in it.
 */
export function toFragment(state) {
  const settings = new URLSearchParams();
  if (state.mode !== "prompt") settings.set("mode", state.mode);
  if (state.model) settings.set("model", state.model);
  if (!state.stream) settings.set("stream", "false");
  settings.set("alternatives", state.alternatives ?? "off");
  for (const [name, value] of Object.entries(state.values)) {
    if (value !== undefined) settings.set(name, JSON.stringify(value));
  }
  const whole = new URLSearchParams(settings);
  if (state.messages.length > 0) whole.set("messages", JSON.stringify(state.messages));
  if (state.input) whole.set("input", state.input);
  const complete = whole.toString().length <= LONGEST;
  return { fragment: `#${complete ? whole : settings}`, complete };
}

/**
 * The state that a fragment tells; what it does not tell, or tells wrongly, is fresh. `known` says which
 * parameters there are.
 */
export function fromFragment(fragment, known) {
  const told = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = freshState();
  if (told.get("mode") === "chat") state.mode = "chat";
  state.model = told.get("model") ?? "";
  state.input = told.get("input") ?? "";
  state.messages = messagesOf(parsed(told.get("messages")));
  state.stream = told.get("stream") !== "false";
  const alternatives = told.get("alternatives");
  if (alternatives === "off") state.alternatives = null;
  else if (/^\d+$/.test(alternatives ?? "")) state.alternatives = Number(alternatives);
  for (const name of known) {
    const value = parsed(told.get(name));
    if (value !== undefined && value !== null) state.values[name] = value;
  }
  return state;
}

function parsed(text) {
  if (text === null) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function messagesOf(value) {
  if (!Array.isArray(value)) return [];
  return value
    .filter((message) => typeof message?.role === "string" && typeof message.content === "string")
    .map(({ role, content }) => ({ role, content }));
}
