/** An error as the server said it. */

import { byId, element } from "./dom.js";

/** Show an ApiError; `fieldOf(param)` gives the control of the field at fault, if the page has it. */
export function showFailure(error, fieldOf) {
  const facts = [
    ["Status", error.status],
    ["Type", error.type],
    ["Parameter", error.param],
    ["Code", error.code],
    ["Request id", error.requestId],
    ["Retry after", error.retryAfter && `${error.retryAfter} s`],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const field = error.param ? fieldOf(error.param) : undefined;
  const show = element("button", { type: "button", className: "quiet" }, "Show the setting");
  show.addEventListener("click", () => field.focus());
  byId("failure").replaceChildren(
    element("p", { className: "message" }, error.message),
    element(
      "dl",
      {},
      ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))),
    ),
    ...(field ? [show] : []),
  );
}

export function clearFailure() {
  byId("failure").replaceChildren();
}
