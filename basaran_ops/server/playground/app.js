/** The page: what its parts do together. */

import { Answers } from "./answers.js";
import { Api, ApiError } from "./api.js";
import { copy } from "./clipboard.js";
import { Controls } from "./controls.js";
import { Conversation } from "./conversation.js";
import { Counters, tokensText } from "./counters.js";
import { byId, element } from "./dom.js";
import { clearFailure, showFailure } from "./failure.js";
import { applyPreset, fitPresets, presetOf, PRESETS } from "./presets.js";
import { buildContinuation, buildRequest, forPage } from "./request.js";
import { asksForKey, requestFields } from "./schema.js";
import { asCurl, asPython } from "./snippets.js";
import { freshState, fromFragment, toFragment } from "./state.js";
import { legendEntries } from "./tokens.js";

const api = new Api(new URL("..", import.meta.url));
const counters = new Counters();
const conversation = new Conversation(changed);
const answers = new Answers(byId("answers"), { refusal, regenerate, restored: stop, copied: (text) => copyOut(text, "Text") });

/** What the server says of itself: fields of the requests by mode, its models, whether it wants a key, and the
 * token that ends a text. */
const server = { fields: null, models: [], wantsKey: false, end: null };
let controls = null;
/** The AbortController of the request under way. */
let running = null;
let saving = null;
let presets = PRESETS;

// --- the state, and the page that shows it

function readState() {
  const on = byId("probabilities").checked;
  return {
    mode: document.querySelector("input[name=mode]:checked").value,
    model: model()?.id ?? "",
    input: byId("input").value,
    messages: conversation.messages,
    stream: byId("stream").checked,
    alternatives: on ? Number(byId("alternatives-count").value) : null,
    values: controls.values,
  };
}

function showState(state) {
  document.querySelector(`input[name=mode][value=${state.mode}]`).checked = true;
  if (server.models.some(({ id }) => id === state.model)) byId("model").value = state.model;
  byId("input").value = state.input;
  conversation.messages = state.messages;
  byId("stream").checked = state.stream;
  byId("probabilities").checked = state.alternatives !== null;
  byId("alternatives-count").value = Math.min(state.alternatives ?? freshState().alternatives, mostAlternatives());
  controls.values = state.values;
  showMode();
  showPreset();
  countInput();
}

function changed() {
  showPreset();
  clearTimeout(saving);
  saving = setTimeout(() => save("replaceState"), 250);
}

/** Put the state into the address: as the same page while it is edited, as a new one when it is run. */
function save(method) {
  clearTimeout(saving);
  const { fragment, complete } = toFragment(readState());
  if (fragment !== location.hash) history[method](null, "", fragment);
  if (!complete) notify("Too long for the address: it keeps the settings alone.");
}

function showMode() {
  const chat = readState().mode === "chat";
  byId("conversation").hidden = !chat;
  byId("input-label").textContent = chat ? "Your message" : "Prompt";
  byId("input").placeholder = chat ? "Ask something" : "Once upon a time";
  byId("input").rows = chat ? 3 : 5;
  byId("output-title").textContent = chat ? "Reply" : "Completion";
  // In a conversation what one writes next comes after the reply.
  if (chat) byId("results").after(byId("composer"));
  else byId("results").before(byId("composer"));
  controls.showMode(chat ? "chat" : "prompt");
}

function showPreset() {
  const preset = presetOf(presets, controls.values);
  byId("preset").value = preset?.id ?? "";
  byId("preset-hint").textContent = preset?.about ?? "Settings of your own.";
}

function mostAlternatives() {
  return server.fields.prompt.get("logprobs")?.maximum ?? Infinity;
}

function say(text) {
  byId("status").textContent = text;
}

let noticed = null;
function notify(text) {
  say(text);
  byId("notice").textContent = text;
  byId("notice").hidden = false;
  clearTimeout(noticed);
  noticed = setTimeout(() => {
    byId("notice").hidden = true;
  }, 4000);
}

function showConnection(state, text) {
  byId("connection").dataset.state = state;
  byId("connection").textContent = text;
}

// --- the server

async function describe() {
  const description = await api.json("openapi.json");
  server.fields = {
    prompt: requestFields(description, "CompletionRequest"),
    chat: requestFields(description, "ChatRequest"),
  };
  server.wantsKey = asksForKey(description);
  controls = new Controls(byId("controls"), server.fields, changed);
  byId("alternatives-count").max = mostAlternatives();
}

/** Ask which models there are, until they are loaded. */
async function connect(wanted) {
  if (server.wantsKey && !api.key) {
    showConnection("key", "needs an API key");
    byId("settings").open = true;
    return;
  }
  clearFailure();
  try {
    server.models = (await api.json("v1/models")).data;
    if (server.models[0].max_model_len !== null) server.end = (await api.json("tokenizer_info")).eos_token;
  } catch (error) {
    server.models = [];
    showConnection("failed", error.status === 401 ? "needs another API key" : "not reached");
    fail(error);
    return;
  }
  const [{ max_model_len: length }] = server.models;
  const select = byId("model");
  const chosen = [wanted, select.value].find((name) => server.models.some(({ id }) => id === name));
  select.replaceChildren(...server.models.map(({ id }) => element("option", { value: id }, id)));
  select.disabled = false;
  if (chosen) select.value = chosen;
  document.title = `${server.models[0].id} · Playground`;
  if (length === null) {
    showConnection("loading", "loading the model…");
    setTimeout(() => connect(wanted), 1000);
    return;
  }
  showConnection("ready", `ready, context of ${length}`);
  showCapabilities();
  countInput();
}

function model() {
  return server.models.find(({ id }) => id === byId("model").value) ?? server.models[0];
}

function contextLength() {
  return model()?.max_model_len ?? null;
}

function showCapabilities() {
  const chats = model().capabilities.chat;
  byId("no-chat").hidden = chats;
  const chat = document.querySelector("input[name=mode][value=chat]");
  chat.disabled = !chats;
  if (!chats && chat.checked) {
    document.querySelector("input[name=mode][value=prompt]").checked = true;
    showMode();
  }
  for (const name of ["max_tokens", "min_tokens"]) {
    controls.limit(name, Math.min(contextLength(), server.fields.prompt.get(name).maximum ?? Infinity));
  }
  const before = presetOf(presets, controls.values);
  const most = Math.min(Math.floor(contextLength() / 2), server.fields.prompt.get("max_tokens").maximum ?? Infinity);
  presets = fitPresets(most);
  if (before) controls.values = applyPreset(presets.find(({ id }) => id === before.id), controls.values);
}

let counting = null;
/** Say how many tokens a prompt has. Not of a conversation, which templates refuse while it is unfinished. */
function countInput() {
  clearTimeout(counting);
  byId("input-count").textContent = "";
  counting = setTimeout(async () => {
    const { mode, input, model: name } = readState();
    if (byId("connection").dataset.state !== "ready" || mode === "chat" || input === "" || input.length > 20000) return;
    if (input.length > (server.fields.prompt.get("prompt").longest ?? Infinity)) return;
    try {
      const { count } = await api.json("tokenize", { body: { model: name, prompt: input } });
      if (byId("input").value === input) byId("input-count").textContent = `${tokensText(count)} of ${contextLength()}`;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // a run will say what is wrong; a count is no reason to
    }
  }, 400);
}

// --- requests

/** The state with the reply that a further message answers. */
function stateToRun() {
  const state = readState();
  const kept = state.mode === "chat" && state.input !== "" ? answers.kept : undefined;
  if (kept) state.messages = [...state.messages, { role: "assistant", content: kept.text }];
  return state;
}

async function run() {
  const before = stateToRun();
  const request = buildRequest(before, server.fields[before.mode]);
  if (before.mode === "chat") {
    conversation.messages = request.body.messages;
    byId("input").value = "";
  }
  save("pushState");
  const count = Number.isInteger(before.values.n) ? before.values.n : 1;
  answers.begin(Math.max(1, Math.min(count, 64)), { chat: before.mode === "chat" });
  await perform(request, (choice) => answers.panelOf(choice.index));
}

/** Why nothing can be regenerated, if so. */
function refusal() {
  if (model()?.capabilities?.continuation === false) {
    return "This model writes its answer apart from the prompt, so that it cannot go on from a part of one.";
  }
  return undefined;
}

async function regenerate(panel, position, alternative) {
  stop();
  const state = readState();
  const ends = alternative?.text === server.end || panel.answer.endsWith(position, alternative);
  panel.branch(position, alternative, ends);
  const { answer } = panel;
  if (ends) return; // there is nothing to go on with
  const ids = [...answer.promptIds, ...answer.ids];
  await perform(buildContinuation(state, server.fields.prompt, ids, contextLength()), () => panel, { goesOn: true });
}

/** Send a request and show what comes, each choice in the panel that `panelFor` gives. */
async function perform({ path, body }, panelFor, { goesOn = false } = {}) {
  stop();
  const own = new AbortController();
  running = own;
  clearFailure();
  controls.blame(null);
  showRunning(true);
  byId("output").hidden = false;
  byId("legend").hidden = body.logprobs === undefined;
  counters.start();
  say("Generating.");
  try {
    for await (const payload of payloads(path, forPage(body), own.signal)) {
      own.signal.throwIfAborted(); // what had come by then is no part of what is shown now
      for (const choice of payload.choices) {
        counters.count(choice.token_ids?.length ?? 0);
        panelFor(choice).push(choice, goesOn ? null : choice.prompt_token_ids ?? payload.prompt_token_ids);
      }
      counters.usage = payload.usage ?? counters.usage;
    }
    end(own, { whole: !body.stream }, "Done");
  } catch (error) {
    end(own, { whole: !body.stream }, error.name === "AbortError" ? "Stopped" : "Failed");
    // Of a request that was refused there is nothing to show.
    if (running === null && counters.tokens === 0 && !goesOn) byId("output").hidden = true;
    if (error instanceof ApiError) fail(error);
    else if (error.name !== "AbortError") throw error;
  }
}

/** What a request is answered with: its chunks, or the one whole. */
async function* payloads(path, body, signal) {
  if (body.stream) yield* api.stream(path, { body, signal });
  else yield await api.json(path, { body, signal });
}

function end(own, { whole }, word) {
  answers.end();
  if (running !== own) return; // another has begun
  running = null;
  counters.end({ whole });
  showRunning(false);
  const speed = counters.speed ? `, ${counters.speed.toFixed(0)} tokens a second` : "";
  say(`${word}: ${tokensText(counters.tokens)} in ${counters.total.toFixed(1)} seconds${speed}.`);
}

function stop() {
  running?.abort();
}

function showRunning(is) {
  const [from, to] = is ? ["run", "stop"] : ["stop", "run"];
  const focused = document.activeElement === byId(from);
  byId(to).hidden = false;
  byId(from).hidden = true;
  if (focused) byId(to).focus();
  byId("output").setAttribute("aria-busy", String(is));
}

function fail(error) {
  const named = (error.param ?? "").split(/[.[]/)[0];
  const own = { prompt: "input", messages: "input", top_logprobs: "alternatives-count", logprobs: "alternatives-count" };
  const name = named === "max_completion_tokens" ? "max_tokens" : named;
  controls?.blame(name);
  showFailure(error, () => byId(own[named]) ?? controls?.reveal(name));
}

async function copyOut(text, what) {
  if (await copy(text, what)) notify(`${what} copied.`);
}

function copyRequest(as, what) {
  const state = stateToRun();
  copyOut(as(api.root, buildRequest(state, server.fields[state.mode]), server.wantsKey || api.key !== ""), what);
}

// --- what the user does

function listen() {
  byId("run").addEventListener("click", run);
  byId("stop").addEventListener("click", stop);
  byId("copy-curl").addEventListener("click", () => copyRequest(asCurl, "curl command"));
  byId("copy-python").addEventListener("click", () => copyRequest(asPython, "Python program"));
  byId("input").addEventListener("input", countInput);
  byId("key").addEventListener("input", () => {
    api.key = byId("key").value.trim();
    keep(api.key);
  });
  byId("key").addEventListener("change", () => connect());
  byId("key-form").addEventListener("submit", (event) => event.preventDefault());
  byId("preset").addEventListener("input", () => {
    const preset = presets.find(({ id }) => id === byId("preset").value);
    if (preset) controls.values = applyPreset(preset, controls.values);
    changed();
  });
  byId("reset").addEventListener("click", () => {
    const { mode, model: name, input, messages } = readState();
    showState({ ...firstState(), mode, model: name, input, messages });
    save("replaceState");
  });
  byId("modes").addEventListener("change", () => {
    clearFailure();
    showMode();
    countInput();
  });
  byId("model").addEventListener("change", countInput);
  for (const id of ["input", "stream", "probabilities", "alternatives-count", "modes", "model"]) {
    byId(id).addEventListener("input", changed);
  }
  addEventListener("popstate", () => showState(stateOfAddress()));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape" && running && !answers.alternativesOpen) {
      stop();
    }
  });
  const wide = matchMedia("(min-width: 60rem)");
  const fold = () => {
    byId("settings").open = wide.matches;
  };
  wide.addEventListener("change", fold);
  fold();
}

/** The key, for this tab: a page that is loaded again has it, another tab and tomorrow's do not. */
function keep(key) {
  try {
    if (key) sessionStorage.setItem("api-key", key);
    else sessionStorage.removeItem("api-key");
  } catch {
    // Storage may be forbidden: then it is in this page alone.
  }
}

function keptKey() {
  try {
    return sessionStorage.getItem("api-key") ?? "";
  } catch {
    return "";
  }
}

function firstState() {
  return { ...freshState(), values: applyPreset(presets[0], {}) };
}

function stateOfAddress() {
  return location.hash.length > 1 ? fromFragment(location.hash, controls.names) : firstState();
}

async function start() {
  byId("legend").append(...legendEntries());
  byId("preset").append(
    ...PRESETS.map(({ id, name }) => element("option", { value: id }, name)),
    element("option", { value: "" }, "Custom"),
  );
  api.key = keptKey();
  byId("key").value = api.key;
  try {
    await describe();
  } catch (error) {
    showConnection("failed", "not reached");
    fail(error);
    return;
  }
  const state = stateOfAddress();
  showState(state);
  listen();
  await connect(state.model);
}

start();
