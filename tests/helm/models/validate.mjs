// Validates the manifests of a JSON file by the models' schemas; writes what is wrong, as JSON, to another.
import { readFileSync, writeFileSync } from "node:fs";

const [, , input, output] = process.argv;
const faults = [];
for (const manifest of JSON.parse(readFileSync(input, "utf8"))) {
  const module = `@kubernetes-models/${manifest.model}/${manifest.data.apiVersion}/${manifest.data.kind}`;
  const { [manifest.data.kind]: Kind } = await import(module);
  try {
    new Kind(manifest.data).validate();
  } catch (error) {
    faults.push(`${manifest.name}: ${error.message}`);
  }
}
writeFileSync(output, JSON.stringify(faults));
