/** Making nodes. Strings become text nodes, never markup. */

/** An element with properties (`dataset` and `aria-…` attributes too) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "dataset") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

const STANDS_FOR = new Map([["\n", "↵"], ["\r", "␍"], ["\t", "⇥"], [" ", "␣"]]);

/** A text whose white space can be seen. */
export function visible(text) {
  return text.replace(/[\n\r\t ]/g, (space) => STANDS_FOR.get(space));
}

export function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share > 0 && share < 0.01) return "<0.01%";
  return `${share.toFixed(share < 1 ? 2 : 1)}%`;
}
