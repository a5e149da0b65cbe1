/** How fields of a request are shown: their order, and a sentence each. Ranges are the server's: schema.js. */

export const GROUPS = [
  { title: "Sampling", open: true, names: ["temperature", "top_p", "top_k", "min_p", "seed"] },
  { title: "Length", open: true, names: ["max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos"] },
  { title: "Choices", names: ["n", "best_of"] },
  {
    title: "Penalties",
    names: ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"],
  },
  {
    title: "Prompt",
    names: ["echo", "suffix", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"],
  },
];

/** Where what is in no group goes: fields that the server has learnt since this page was written. */
export const REST = "More";

/** Fields that are set elsewhere on the page, or by the page itself, and where. */
export const ELSEWHERE = new Map([
  ["prompt", "the editor"],
  ["messages", "the conversation"],
  ["model", "the model's menu"],
  ["stream", "a switch"],
  ["logprobs", "the switch for token probabilities"],
  ["top_logprobs", "the switch for token probabilities"],
  ["max_completion_tokens", "max_tokens, of which it is chat's name"],
  ["stream_options", "always asks for usage, which the counters show"],
  ["return_token_ids", "always on, for regenerating from a token"],
]);

/** Numbers with more values than a slider has places. */
export const TYPED = new Set(["seed", "top_k"]);

export const HELP = new Map([
  ["temperature", "0 always takes the likeliest token; higher is more surprising."],
  ["top_p", "Keeps the likeliest tokens that together have this probability."],
  ["top_k", "Keeps so many of the likeliest tokens; 0 keeps all."],
  ["min_p", "Drops tokens less probable than this share of the likeliest one's."],
  ["seed", "The same seed gives the same tokens."],
  ["max_tokens", "The most tokens to generate. Unset: 16 for a prompt, all that fits in a chat."],
  ["min_tokens", "Until then nothing can end the text."],
  ["stop", "One a line; \\n, \\t and \\\\ are a line feed, a tab and a backslash."],
  ["stop_token_ids", "Token ids that end the text, separated by commas."],
  ["ignore_eos", "Go on after the model's own end."],
  ["n", "Answers to the same prompt."],
  ["best_of", "Generates so many and tells the likeliest n. Not with streaming."],
  ["presence_penalty", "Against tokens that were there already."],
  ["frequency_penalty", "Against tokens, for each time that they were there."],
  ["repetition_penalty", "Divides what speaks for tokens of prompt and text; 1 is off."],
  ["logit_bias", 'JSON: for or against token ids, {"42": -100}.'],
  ["echo", "Tell the prompt too, with its probabilities."],
  ["suffix", "What comes after the gap, for models that fill in the middle."],
  ["add_generation_prompt", "Whether the template opens the assistant's turn."],
  ["continue_final_message", "Go on with the last message instead of answering it."],
  ["chat_template_kwargs", "JSON: variables of the chat template."],
  ["user", "Who asks; without effect."],
  ["response_format", "JSON."],
]);
