// OpenAI's client for Node, pointed at basaran_ops by OPENAI_BASE_URL, or at localhost.
// npm install openai; node examples/openai_node.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://localhost:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "any",
});
const model = (await client.models.list()).data[0].id;

const completion = await client.completions.create({
  model,
  prompt: "The capital of France is",
  max_tokens: 8,
  temperature: 0,
});
console.log(completion.choices[0].text);

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");
console.log();
