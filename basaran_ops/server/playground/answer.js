/** One choice as it comes, whichever endpoint and shape it comes in. No page here: tests run it alone. */

/**
 * A token is {text, id, logprob, top, generated}: `top` has the likeliest at its place and itself, as
 * {text, id, logprob}, the likeliest first; logprob is null for a prompt's first token. `picked` is true of one
 * that the user chose.
 */
export class Answer {
  #decoder = new TextDecoder();

  constructor(index) {
    this.index = index;
    this.text = "";
    this.tokens = [];
    this.promptIds = [];
    this.ids = [];
    this.finishReason = null;
    this.calls = [];
    this.echoed = 0;
  }

  /** Take a choice of a chunk, or a whole one. Returns {text, tokens}: what is new. */
  push(choice, promptIds) {
    if (promptIds) this.promptIds = promptIds;
    const ids = choice.token_ids ?? [];
    const message = choice.delta ?? choice.message;
    const text = (message ? message.content : choice.text) ?? "";
    const tokens = choice.logprobs?.content
      ? this.#share(text, choice.logprobs.content)
      : fromCompletion(choice.logprobs);
    const echoed = Math.max(0, tokens.length - ids.length);
    tokens.forEach((token, position) => {
      token.generated = position >= echoed;
      token.id = token.generated ? ids[position - echoed] : this.promptIds[this.echoed + position];
    });
    this.echoed += echoed;
    this.text += text;
    this.tokens.push(...tokens);
    this.ids.push(...ids);
    this.finishReason = choice.finish_reason ?? this.finishReason;
    for (const call of message?.tool_calls ?? []) this.#call(call);
    return { text, tokens };
  }

  /**
   * A chat's tokens, with what each added to the text. Its `token` alone is not that: of a character in several
   * tokens each is U+FFFD, and a token that ends the text has a name and adds nothing.
   */
  #share(text, content) {
    let rest = text;
    return content.map((entry, position) => {
      const piece = this.#decoder.decode(new Uint8Array(entry.bytes ?? []), { stream: true });
      const last = position === content.length - 1;
      const own = last ? rest : rest.startsWith(piece) ? piece : "";
      rest = rest.slice(own.length);
      return { ...fromChat(entry), text: own };
    });
  }

  /** A call comes in pieces: its name first, its arguments bit by bit. */
  #call({ index = this.calls.length, function: told }) {
    this.calls[index] ??= { name: "", arguments: "" };
    this.calls[index].name += told?.name ?? "";
    this.calls[index].arguments += told?.arguments ?? "";
  }

  /** Ids of all that comes before a token, the prompt included. */
  idsBefore(position) {
    if (position < this.echoed) return this.promptIds.slice(0, position);
    return [...this.promptIds, ...this.ids.slice(0, position - this.echoed)];
  }

  /** Whether this choice of a token is the one that ended the text: it has no text, and nothing comes after it. */
  endsWith(position, alternative) {
    const { id, text } = this.tokens[position];
    const last = position === this.tokens.length - 1;
    return last && text === "" && id === alternative?.id && this.finishReason === "stop";
  }

  /**
   * Another answer, with the tokens before `position` and, where given, an alternative to the one there, which
   * `ends` the text or not.
   */
  branch(position, alternative, ends = false) {
    const branch = new Answer(this.index);
    const inPrompt = position < this.echoed;
    const kept = this.tokens.slice(0, position);
    branch.promptIds = inPrompt ? this.idsBefore(position) : this.promptIds;
    branch.ids = inPrompt ? [] : this.ids.slice(0, position - this.echoed);
    branch.echoed = Math.min(position, this.echoed);
    if (alternative) {
      const { id, text, top } = this.tokens[position];
      const own = ends ? { text: "" } : alternative.id === id ? { text } : {};
      kept.push({ ...alternative, ...own, top, generated: true, picked: true });
      branch.ids = [...branch.ids, alternative.id];
    }
    if (ends) branch.finishReason = "stop";
    branch.tokens = kept;
    branch.text = kept.map(({ text }) => text).join("");
    return branch;
  }
}

function fromChat({ token, logprob, top_logprobs: top, token_id: id }) {
  const told = top.map((entry) => ({ text: entry.token, id: entry.token_id, logprob: entry.logprob }));
  return { text: token, logprob, top: ranked(told, { text: token, id, logprob }) };
}

function fromCompletion(logprobs) {
  if (!logprobs) return [];
  return logprobs.tokens.map((text, position) => {
    const logprob = logprobs.token_logprobs[position];
    const ids = logprobs.top_token_ids?.[position] ?? {};
    // JSON's objects have an order that JavaScript's do not keep: names like "1" go first.
    const top = Object.entries(logprobs.top_logprobs[position] ?? {}).map(([name, value]) => ({
      text: name,
      id: ids[name],
      logprob: value,
    }));
    return { text, logprob, top: ranked(top) };
  });
}

/** The likeliest first; with the token itself where it is none of them. */
function ranked(top, own) {
  const all = own && !top.some(({ id, text }) => id === own.id && text === own.text) ? [...top, own] : top;
  return all.sort((a, b) => b.logprob - a.logprob);
}
