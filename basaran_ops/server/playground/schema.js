/** What the server's own description says of a request's fields: the only place that ranges come from. */

/**
 * The fields of a request, by name: {name, kind, minimum, maximum, longest, fallback}.
 * `kind` is number, integer, boolean, text, texts, integers, json, or none where null is the only value;
 * `longest` is the most characters of a text; `fallback` is what the server takes where nothing is sent, null where that depends.
 */
export function requestFields(description, schemaName) {
  const { properties } = description.components.schemas[schemaName];
  return new Map(Object.entries(properties).map(([name, told]) => [name, readField(name, told)]));
}

/** Whether the server answers nobody without a key. */
export function asksForKey(description) {
  return !(description.security ?? [{}]).some((way) => Object.keys(way).length === 0);
}

function readField(name, told) {
  return {
    name,
    kind: kindOf(told),
    minimum: safe(told.minimum),
    maximum: safe(told.maximum),
    longest: (told.anyOf ?? [told]).find(({ type }) => type === "string")?.maxLength,
    fallback: told.default ?? null,
  };
}

function kindOf(told) {
  const branches = told.anyOf ?? [told];
  const types = branches.flatMap((branch) => branch.type ?? []);
  if (types.length > 0 && types.every((type) => type === "null")) return "none";
  const values = types.filter((type) => type !== "null");
  const items = branches.find((branch) => branch.items)?.items.type;
  if (values.length === 1 && ["number", "integer", "boolean"].includes(values[0])) return values[0];
  if (values.length === 1 && values[0] === "string") return "text";
  if (values.length === 1 && values[0] === "array" && items === "integer") return "integers";
  if (values.includes("string") && values.includes("array") && items === "string") return "texts";
  return "json";
}

/** JavaScript's numbers hold whole ones up to 2^53 only. */
function safe(bound) {
  if (bound === undefined) return undefined;
  return Math.min(Math.max(bound, Number.MIN_SAFE_INTEGER), Number.MAX_SAFE_INTEGER);
}
