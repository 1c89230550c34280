// A chat agent on Node.js without dependencies: the same loop and events as `chat-agent`, in another language.
//
// POST /chat {"message"}: server-sent events of type text, tool, result, and at the end done or error.

import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { createContext, runInContext } from "node:vm";

const MAX_BODY = 1 << 20;
const MAX_STEPS = 25;
const { OPENAI_BASE_URL: baseUrl = "", OPENAI_API_KEY: apiKey = "", OPENAI_MODEL: model = "default" } = process.env;

const instructions = "You are a helpful agent with a JavaScript interpreter. Use it whenever computing beats guessing; then answer briefly.";
const tools = [{
  type: "function",
  function: {
    name: "run_javascript",
    description: "Run JavaScript and return the value of its last expression. Variables live on until the next call.",
    parameters: { type: "object", properties: { code: { type: "string" } }, required: ["code"] },
  },
}];

// The room is what isolates; the context only gives every session variables of its own.
const contexts = new Map();
function runJavascript(directory, code) {
  if (!contexts.has(directory)) contexts.set(directory, createContext({ console }));
  const value = runInContext(code, contexts.get(directory), { timeout: 10_000 });
  return typeof value === "string" ? value : JSON.stringify(value) ?? String(value);
}

function callTool(directory, { name, arguments: text }) {
  try {
    if (name !== "run_javascript") throw new Error(`there is no tool ${name}`);
    return runJavascript(directory, String(JSON.parse(text).code)).slice(0, 20_000);
  } catch (error) {
    return `error: ${error.message}`;
  }
}

/** Stream one reply of the model: yields pieces of text, returns the whole message. */
async function* reply(messages, signal) {
  const response = await fetch(`${baseUrl}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(apiKey && { authorization: `Bearer ${apiKey}` }) },
    body: JSON.stringify({ model, messages, tools, stream: true }),
    signal,
  });
  if (!response.ok) throw new Error(`The model endpoint answered ${response.status}: ${(await response.text()).slice(0, 300)}`);
  const message = { role: "assistant", content: "" };
  let rest = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      if (line.slice(5).trim() === "[DONE]") return message;
      const delta = JSON.parse(line.slice(5)).choices?.[0]?.delta ?? {};
      if (delta.content) {
        message.content += delta.content;
        yield delta.content;
      }
      for (const part of delta.tool_calls ?? []) addCall(message, part);
    }
  }
  throw new Error("The model's reply broke off before its end.");
}

function addCall(message, { index = 0, id, function: piece = {} }) {
  message.tool_calls ??= [];
  const call = message.tool_calls[index] ??= { id, type: "function", function: { name: piece.name, arguments: "" } };
  call.function.arguments += piece.arguments ?? "";
}

/** Replace the file at once: a crash leaves the old history or the new one. */
async function save(file, history) {
  await mkdir(dirname(file), { recursive: true });
  await writeFile(`${file}.new`, JSON.stringify(history));
  await rename(`${file}.new`, file);
}

/** The loop: ask the model, call the tools it asks for, until it answers without one. */
async function* answer(message, directory, signal) {
  if (!baseUrl) throw new Error("No model is configured: start Roost with OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL set, or with `--model local`.");
  const file = join(directory, "history.json");
  const history = await readFile(file, "utf8").then(JSON.parse, () => []);
  history.push({ role: "user", content: message });
  for (let step = 0; step < MAX_STEPS; step++) {
    const pieces = reply([{ role: "system", content: instructions }, ...history], signal);
    let next;
    while (!(next = await pieces.next()).done) yield { type: "text", text: next.value };
    history.push(next.value);
    for (const call of next.value.tool_calls ?? []) {
      yield { type: "tool", ...call.function };
      const output = callTool(directory, call.function);
      history.push({ role: "tool", tool_call_id: call.id, content: output });
      yield { type: "result", name: call.function.name, output };
    }
    if (!next.value.tool_calls) {
      await save(file, history);
      yield { type: "done" };
      return;
    }
  }
  throw new Error(`The agent stopped after ${MAX_STEPS} steps without an answer.`);
}

async function readMessage(request) {
  let body = "";
  for await (const piece of request.setEncoding("utf8")) {
    body += piece;
    if (body.length > MAX_BODY) return null;
  }
  try {
    const { message } = JSON.parse(body);
    return typeof message === "string" && message.trim() ? message : null;
  } catch {
    return null;
  }
}

function sendJson(response, status, value) {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
}

async function chat(request, response) {
  const message = await readMessage(request);
  if (message === null) return sendJson(response, 400, { error: 'The body has to be JSON like {"message": "Hello"}.' });
  const directory = request.headers["x-roost-session-dir"] ?? process.env.ROOST_SESSION_DIR ?? join(homedir(), "session");
  const gone = new AbortController();
  response.on("close", () => gone.abort());
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  const send = event => response.write(`data: ${JSON.stringify(event)}\n\n`);
  try {
    for await (const event of answer(message, directory, gone.signal)) send(event);
  } catch (error) {
    send({ type: "error", message: error.message });
  }
  response.end();
}

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  if (pathname === "/chat" && request.method === "POST") return chat(request, response);
  if (pathname === "/") return sendJson(response, 200, { agent: "node-agent", node: process.version });
  sendJson(response, 404, { error: "There are / and POST /chat." });
});
server.listen(Number(process.env.FC_SERVER_PORT ?? 9000), "0.0.0.0");
process.on("SIGTERM", () => process.exit(0));
