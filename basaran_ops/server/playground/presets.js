/** Settings to begin from. A preset says nothing of a parameter: it is the server's default then. */

export const PRESETS = [
  { id: "balanced", name: "Balanced", about: "Lively, and rarely off the track.", values: { temperature: 0.7, top_p: 0.95, max_tokens: 256 } },
  { id: "greedy", name: "Greedy", about: "Always the likeliest token: the same text each time.", values: { temperature: 0, max_tokens: 256 } },
  { id: "creative", name: "Creative", about: "Surprising words, and fewer of them twice.", values: { temperature: 1.1, min_p: 0.05, presence_penalty: 0.4, max_tokens: 512 } },
  { id: "code", name: "Precise code", about: "Little chance, much room.", values: { temperature: 0.2, top_p: 0.9, max_tokens: 1024 } },
  { id: "seeded", name: "Seeded", about: "Chance that can be repeated.", values: { temperature: 0.8, top_p: 0.95, seed: 42, max_tokens: 256 } },
  { id: "plain", name: "Server's defaults", about: "Nothing is sent that was not asked for.", values: {} },
];

/** The presets as they are where an answer can have so many tokens at most. */
export function fitPresets(most) {
  return PRESETS.map((preset) => {
    const { max_tokens: wanted } = preset.values;
    return wanted > most ? { ...preset, values: { ...preset.values, max_tokens: most } } : preset;
  });
}

/** All that a preset decides; other parameters stay as they are. */
const DECIDED = [
  ...new Set([...PRESETS.flatMap(({ values }) => Object.keys(values)), "top_k", "frequency_penalty", "repetition_penalty"]),
];

/** The parameters after choosing a preset. */
export function applyPreset({ values }, current) {
  const kept = Object.entries(current).filter(([name]) => !DECIDED.includes(name));
  return Object.fromEntries([...kept, ...Object.entries(values)]);
}

/** Which of the presets these parameters are, if any. */
export function presetOf(presets, current) {
  return presets.find(({ values }) => DECIDED.every((name) => current[name] === values[name]));
}
