/** Copying, also where a page may not: on a plain http address browsers have no clipboard for it. */

import { byId } from "./dom.js";

/** Copy a text; where that cannot be, show it for the user to. Returns whether it was copied. */
export async function copy(text, title) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text, title);
  }
}

function copyBySelection(text, title) {
  const dialog = byId("code");
  byId("code-title").textContent = title;
  byId("code-text").value = text;
  dialog.showModal();
  byId("code-text").select();
  // The old way, which needs a selection and works without a secure context.
  const copied = document.execCommand("copy");
  if (copied) dialog.close();
  return copied;
}
