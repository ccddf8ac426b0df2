// An MCP client of the TypeScript SDK: node mcp_sdk.mjs PACKAGE URL TOOL, with the operator's token
// in CODEX_POOLER_OPERATOR_TOKEN.  Prints what it learned as one line of JSON.
const [name, url, tool] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${process.env.CODEX_POOLER_OPERATOR_TOKEN}` };
const who = { name: "tests", version: "1" };

async function connect() {
  if (name === "sdk") {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const http = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
    const client = new Client(who);
    const transport = new http.StreamableHTTPClientTransport(new URL(url), {
      requestInit: { headers },
    });
    await client.connect(transport);
    return client;
  }
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const mode = name === "client-auto" ? "auto" : "legacy";
  const client = new Client(who, { versionNegotiation: { mode } });
  await client.connect(
    new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }),
  );
  return client;
}

const client = await connect();
const { tools } = await client.listTools(); // its calls are then checked by the output schemas
const called = await client.callTool({ name: tool, arguments: {} });
const bad = await client.callTool({ name: tool, arguments: { x: 1 } });
console.log(
  JSON.stringify({
    server: client.getServerVersion()?.name,
    instructions: client.getInstructions(),
    tools: tools.map((it) => it.name),
    output: called.structuredContent,
    isBadAnError: bad.isError,
    text: bad.content[0].text,
  }),
);
await client.close();
