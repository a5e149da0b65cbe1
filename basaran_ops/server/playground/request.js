/** From what the page shows to what is sent. */

/** The path and body of the request, as a user would write it: what is copied as curl or Python. */
export function buildRequest(state, fields) {
  const chat = state.mode === "chat";
  const body = { model: state.model };
  if (chat) body.messages = conversationOf(state);
  else body.prompt = state.input;
  for (const name of fields.keys()) {
    const value = state.values[name];
    if (value !== undefined && name !== "max_completion_tokens") {
      body[chat && name === "max_tokens" ? "max_completion_tokens" : name] = value;
    }
  }
  if (state.alternatives !== null) {
    if (chat) Object.assign(body, { logprobs: true, top_logprobs: state.alternatives });
    else body.logprobs = state.alternatives;
  }
  if (state.stream) body.stream = true;
  return { path: chat ? "v1/chat/completions" : "v1/completions", body };
}

/** The conversation with what is being written at its end. */
export function conversationOf(state) {
  return state.input === "" ? state.messages : [...state.messages, { role: "user", content: state.input }];
}

/** The body as the page sends it: with what its counters and regenerating need. */
export function forPage(body) {
  return { ...body, return_token_ids: true, ...(body.stream ? { stream_options: { include_usage: true } } : {}) };
}

const NOT_CONTINUED = new Set(["n", "best_of", "echo", "suffix", "prompt", "model"]);

/**
 * The request that goes on after token ids: of a prompt, or of a conversation and a part of its answer.
 * Ids, because a text cut between two tokens may be encoded as others.
 */
export function buildContinuation(state, fields, ids, contextLength) {
  const body = { model: state.model, prompt: ids };
  for (const name of fields.keys()) {
    if (state.values[name] !== undefined && !NOT_CONTINUED.has(name)) body[name] = state.values[name];
  }
  const room = contextLength === null ? Infinity : Math.max(0, contextLength - ids.length);
  const wanted = body.max_tokens ?? (state.mode === "chat" ? room : 16);
  if (Math.min(wanted, room) < Infinity) body.max_tokens = Math.min(wanted, room);
  if (body.min_tokens > body.max_tokens) body.min_tokens = body.max_tokens;
  if (state.alternatives !== null) body.logprobs = state.alternatives;
  if (state.stream) body.stream = true;
  return { path: "v1/completions", body };
}
