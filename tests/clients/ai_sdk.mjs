// One case of the Vercel AI SDK: node ai_sdk.mjs CASE responses|chat MODEL PROMPT [unstored], with
// POOLER_URL and CODEX_POOLER_API_KEY in the environment.  Prints what came of it as one line of
// JSON.  Without `unstored` the SDK replays items of its history as references to stored ones.
// AI_SDK=5 in the environment: the older release, which many still have.
import { z } from "zod";

const isOld = process.env.AI_SDK === "5";
const { createOpenAI } = await import(isOld ? "ai-5-openai" : "@ai-sdk/openai");
const { APICallError, Output, RetryError, generateText, stepCountIs, streamText, tool } =
  await import(isOld ? "ai-5" : "ai");
const [name, api, model, prompt, unstored] = process.argv.slice(2);
const openai = createOpenAI({
  baseURL: process.env.POOLER_URL,
  apiKey: process.env.CODEX_POOLER_API_KEY,
});
const asked = {
  model: api === "chat" ? openai.chat(model) : openai(model),
  prompt,
  providerOptions: unstored && { openai: { store: false } },
};
const tools = {
  weather: tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `rain in ${city}`,
  }),
};

async function readStream(options) {
  const errors = [];
  const result = streamText({ ...options, onError: ({ error }) => errors.push(described(error)) });
  let deltaCount = 0;
  let text = "";
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") {
      deltaCount += 1;
      text += part.text;
    }
  }
  if (errors.length > 0) return { text, errors };
  const [finish, usage, steps] = await Promise.all([result.finishReason, result.usage, result.steps]);
  return { text, errors, deltaCount, finish, usage, stepCount: steps.length };
}

function described(error) {
  if (RetryError.isInstance(error)) return { ...described(error.lastError), tries: error.errors.length };
  if (!APICallError.isInstance(error)) return { kind: error?.name ?? typeof error, error };
  const { statusCode, message, isRetryable, responseBody } = error;
  return { kind: error.name, statusCode, message, isRetryable, responseBody, tries: 1 };
}

const cases = {
  async generate() {
    const { text, finishReason, usage } = await generateText(asked);
    return { text, finish: finishReason, usage };
  },
  async stream() {
    return readStream(asked);
  },
  async tools() {
    const { text, steps } = await generateText({ ...asked, tools, stopWhen: stepCountIs(5) });
    const results = steps.flatMap((step) => step.toolResults.map((result) => result.output));
    return { text, stepCount: steps.length, results };
  },
  async toolsStream() {
    return readStream({ ...asked, tools, stopWhen: stepCountIs(5) });
  },
  async secondTurn() {
    const { prompt: question, ...others } = asked;
    const messages = [{ role: "user", content: question }];
    const { text, response } = await generateText({ ...others, messages });
    messages.push(...response.messages, { role: "user", content: "And then?" });
    return { first: text, ...(await readStream({ ...others, messages })) };
  },
  async object() {
    const schema = z.object({ fruit: z.string(), minutes: z.number() });
    return (await generateText({ ...asked, output: Output.object({ schema }) })).output;
  },
};

try {
  console.log(JSON.stringify(await cases[name]()));
} catch (error) {
  console.log(JSON.stringify({ thrown: described(error) }));
}
