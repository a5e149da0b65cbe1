/** Calls to the server that served the page, wherever a proxy has put it. */

import { EventParser } from "./sse.js";

/** What went wrong, in the server's own words where it said any. */
export class ApiError extends Error {
  constructor(message, facts = {}) {
    super(message);
    Object.assign(this, { status: null, type: null, param: null, code: null, requestId: null, retryAfter: null }, facts);
  }
}

export class Api {
  /** `root`: the address that the API's paths are relative to, with a slash at its end. */
  constructor(root) {
    this.root = root;
    this.key = "";
  }

  /** The JSON that answers a GET, or a POST where there is a body. Throws ApiError. */
  async json(path, { body, signal } = {}) {
    const response = await this.#send(path, body, signal);
    const text = await this.#read(() => response.text(), response);
    return parsed(text, response);
  }

  /** The payloads of a stream as they come. Throws ApiError, also for an error or an end in mid-stream. */
  async *stream(path, { body, signal }) {
    const response = await this.#send(path, body, signal);
    const reader = response.body.getReader();
    const parser = new EventParser();
    try {
      for (;;) {
        const { done, value } = await this.#read(() => reader.read(), response);
        if (done) break;
        for (const data of parser.push(value)) {
          if (data === "[DONE]") return;
          const payload = parsed(data, response);
          if (payload.error) throw refusal(payload.error, response);
          yield payload;
        }
      }
      throw new ApiError("The connection ended before the answer did.", facts(response));
    } finally {
      reader.cancel().catch(() => {}); // it may have ended
    }
  }

  async #send(path, body, signal) {
    const headers = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const method = body === undefined ? "GET" : "POST";
    const options = { method, headers, signal, body: body && JSON.stringify(body), credentials: "same-origin" };
    const response = await this.#read(() => fetch(new URL(path, this.root), options));
    if (!response.ok) throw await failure(response);
    return response;
  }

  /** Do what the network may interrupt. An abort stays one. */
  async #read(action, response) {
    try {
      return await action();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(`The server could not be reached: ${error.message}`, response && facts(response));
    }
  }
}

function facts(response) {
  return {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  };
}

function parsed(text, response) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(`This answer is no JSON: ${text.slice(0, 200)}`, facts(response));
  }
}

function refusal({ message, type, param, code }, response) {
  return new ApiError(message, { ...facts(response), type, param, code });
}

/** The error of a response; a proxy's has no JSON, and is told as it stands. */
async function failure(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    if (typeof error.message === "string") return refusal(error, response);
  } catch {
    // not from our server
  }
  return new ApiError(text.trim().slice(0, 500) || response.statusText || "The server gave no reason.", facts(response));
}
