// One case of openai-node: node openai_node.mjs CASE MODEL PROMPT, with POOLER_URL and
// CODEX_POOLER_API_KEY in the environment.  Prints what came of it as one line of JSON.
import OpenAI from "openai";

const [name, model, prompt] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.POOLER_URL,
  apiKey: process.env.CODEX_POOLER_API_KEY,
  timeout: 30_000,
});
const messages = [{ role: "user", content: prompt }];

const cases = {
  async response() {
    const made = await client.responses.create({ model, input: prompt });
    return { text: made.output_text, id: made._request_id };
  },
  async responseStream() {
    let text = "";
    const types = [];
    for await (const event of await client.responses.create({ model, input: prompt, stream: true })) {
      types.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    return { text, types };
  },
  async responseHelper() {
    const made = await client.responses.stream({ model, input: prompt }).finalResponse();
    return { text: made.output_text };
  },
  async chat() {
    const made = await client.chat.completions.create({ model, messages });
    return { text: made.choices[0].message.content, id: made._request_id };
  },
  async chatStream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    return { text };
  },
  async chatHelper() {
    return { text: await client.chat.completions.stream({ model, messages }).finalContent() };
  },
  async tools() {
    const weather = {
      type: "function",
      function: {
        name: "weather",
        parse: JSON.parse,
        parameters: { type: "object", properties: { city: { type: "string" } } },
        function: ({ city }) => `rain in ${city}`,
      },
    };
    const runner = client.chat.completions.runTools({ model, messages, tools: [weather] });
    return { text: await runner.finalContent() };
  },
  async models() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    return { ids };
  },
};

try {
  console.log(JSON.stringify(await cases[name]()));
} catch (error) {
  const { status, code, message, requestID } = error;
  console.log(JSON.stringify({ thrown: { kind: error.constructor.name, status, code, message, requestID } }));
}
