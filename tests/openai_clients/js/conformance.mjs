// The same as ../conformance.py, which see, with OpenAI's own client for JavaScript.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const USER = [{ role: "user", content: "one two three" }];
const TOOLS = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "Wetter für eine Stadt",
      parameters: {
        type: "object",
        properties: {
          city: { type: "string", enum: ["Zürich 東京 🏙", "Oslo"] },
          days: { type: "integer", minimum: 2 },
        },
        required: ["city", "days"],
        additionalProperties: false,
      },
    },
  },
  { type: "function", function: { name: "news", parameters: { type: "object", properties: {} } } },
];
const SCHEMA = {
  type: "object",
  properties: { answer: { type: "string", enum: ["schön ✓"] }, sure: { type: "boolean" } },
  required: ["answer", "sure"],
  additionalProperties: false,
};
const UNICODE = 'Grüße 東京 🏙️ مرحبا \u2028 "quoted\\" \n';
const WORDS = "simulated tokens from a replica model no language model ran".split(" ");

const words = (count) => Array.from({ length: count }, (_, number) => WORDS[number % WORDS.length]).join(" ");
const usage = (found) => found && [found.prompt_tokens, found.completion_tokens, found.total_tokens];
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const collect = async (stream) => {
  const found = [];
  for await (const each of stream) found.push(each);
  return found;
};

const failure = (error) => ({
  error: error.constructor.name,
  status: error.status,
  code: error.code == null ? null : String(error.code),
  param: error.param ?? null,
});

class Scenarios {
  constructor(config) {
    this.config = config;
    this.model = config.model;
    const { base_url: baseURL, api_key: apiKey } = config;
    this.api = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
  }

  chat({ tokens = 2, api = this.api, options, ...more } = {}) {
    const asked = { model: this.model, messages: USER, max_tokens: tokens, ignore_eos: true, ...more };
    return api.chat.completions.create(asked, options);
  }

  async refused(asked) {
    try {
      await asked;
    } catch (error) {
      if (!(error instanceof OpenAI.APIError) || error.status === undefined) throw error;
      return { ...failure(error), says: Boolean(error.error?.message) };
    }
    return { error: null };
  }

  async works() {
    return Boolean((await this.chat()).choices[0].message.content);
  }

  // What the upstream says of itself

  async faults(values) {
    await fetch(`${this.config.admin}/faults`, { method: "PUT", body: JSON.stringify(values) });
  }

  async stats() {
    if (this.config.admin) return (await fetch(`${this.config.admin}/stats`)).json();
    const text = await (await fetch(this.config.metrics)).text();
    const running = text.split("\n").filter((line) => line.startsWith("llamacpp:requests_processing "));
    return { active: Number(running[0].split(" ").at(-1)), outcomes: null };
  }

  async left(before) {
    const began = performance.now();
    let found = await this.stats();
    while (found.active && performance.now() - began < 5000) {
      await pause(20);
      found = await this.stats();
    }
    const aborted = found.outcomes && (found.outcomes.aborted ?? 0) - (before.outcomes.aborted ?? 0);
    return { noticed: !found.active, aborted };
  }

  // Scenarios

  async chat_() {
    const { data: answer, response } = await this.chat({ tokens: 5, temperature: 0 }).withResponse();
    const choice = answer.choices[0];
    const id = response.headers.get("x-request-id");
    return {
      object: answer.object,
      role: choice.message.role,
      content: choice.message.content,
      finish_reason: choice.finish_reason,
      model: answer.model,
      usage: usage(answer.usage),
      request_id: Boolean(id) && answer._request_id === id,
      tier: response.headers.get("x-tierwise-tier"),
    };
  }

  async streamed({ tokens = 6, ...more } = {}) {
    const { data: stream, response } = await this.chat({ tokens, stream: true, ...more }).withResponse();
    const chunks = await collect(stream);
    const withChoices = chunks.filter((chunk) => chunk.choices.length);
    const usages = chunks.filter((chunk) => chunk.usage).map((chunk) => usage(chunk.usage));
    return {
      content: withChoices.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
      finish_reason: withChoices.map((chunk) => chunk.choices[0].finish_reason).find(Boolean) ?? null,
      ids: new Set(chunks.map((chunk) => chunk.id)).size,
      without_choices: chunks.length - withChoices.length,
      usage: usages.at(-1) ?? null,
      usage_is_last: Boolean(chunks.at(-1).usage),
      several: chunks.length > 3,
      model: chunks[0].model,
      request_id: Boolean(response.headers.get("x-request-id")),
    };
  }

  async stream() {
    const { usage_is_last: _, ...seen } = await this.streamed();
    return seen;
  }

  async stream_usage() {
    const seen = await this.streamed({ stream_options: { include_usage: true } });
    const { content, finish_reason, without_choices, usage, usage_is_last } = seen;
    return { content, finish_reason, without_choices, usage, usage_is_last };
  }

  async stream_bytes() {
    const response = await this.chat({ tokens: 3, stream: true }).asResponse();
    const events = (await response.text()).split("\n\n");
    return {
      type: response.headers.get("content-type").split(";")[0],
      events: events.length - 1,
      last: events.at(-2).replace("data: ", ""),
      with_usage: events.filter((event) => event.includes('"usage":{')).length,
      between: events.at(-1) === "" && events.slice(0, -1).every((event) => event.startsWith("data: ")),
    };
  }

  async tools() {
    const tools = TOOLS;
    const choice = (await this.chat({ tokens: 40, tools })).choices[0];
    const [call] = choice.message.tool_calls;
    const required = await this.chat({ tokens: 40, tools, tool_choice: "required" });
    const named = await this.chat({ tokens: 40, tools, tool_choice: { type: "function", function: { name: "news" } } });
    const none = await this.chat({ tokens: 2, tools, tool_choice: "none" });
    const { role, tool_calls } = choice.message;
    const told = [...USER, { role, tool_calls }, { role: "tool", tool_call_id: call.id, content: "7 °C" }];
    const last = await this.chat({ tokens: 3, tools, messages: told });
    return {
      content: choice.message.content,
      finish_reason: choice.finish_reason,
      function: call.function.name,
      arguments: JSON.parse(call.function.arguments),
      required: required.choices[0].message.tool_calls[0].function.name,
      named: named.choices[0].message.tool_calls[0].function.name,
      none: !none.choices[0].message.tool_calls?.length && Boolean(none.choices[0].message.content),
      answer: last.choices[0].message.content,
      answer_reason: last.choices[0].finish_reason,
    };
  }

  async tools_stream() {
    const ids = new Set();
    const pieces = [];
    let [name, content, reason] = [null, "", null];
    for await (const chunk of await this.chat({ tokens: 40, tools: TOOLS, stream: true })) {
      const choice = chunk.choices[0];
      content += choice.delta.content ?? "";
      reason = choice.finish_reason ?? reason;
      for (const delta of choice.delta.tool_calls ?? []) {
        if (delta.id) ids.add(`${delta.index} ${delta.id}`);
        name = delta.function.name ?? name;
        if (delta.function.arguments) pieces.push(delta.function.arguments);
      }
    }
    return {
      function: name,
      arguments: JSON.parse(pieces.join("")),
      finish_reason: reason,
      one_id: ids.size === 1,
      pieces: pieces.length > 1,
      content,
    };
  }

  async json() {
    const form = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: SCHEMA } };
    const plain = await this.chat({ tokens: 40, response_format: { type: "json_object" } });
    const shaped = await this.chat({ tokens: 40, response_format: form });
    return {
      object: JSON.parse(plain.choices[0].message.content),
      schema: JSON.parse(shaped.choices[0].message.content),
    };
  }

  async unicode() {
    const answer = await this.chat({ messages: [{ role: "user", content: [{ type: "text", text: UNICODE }] }] });
    return { content: answer.choices[0].message.content, usage: usage(answer.usage) };
  }

  async embeddings() {
    const asked = { model: this.model, input: ["a b", "ü"] };
    const packed = await this.api.embeddings.create(asked);
    const plain = await this.api.embeddings.create({ ...asked, encoding_format: "float" });
    const raw = await this.api.embeddings.create({ ...asked, encoding_format: "base64" }).asResponse();
    const coded = (await raw.json()).data[0].embedding;
    const bytes = Buffer.from(coded, "base64");
    const decoded = Array.from({ length: bytes.length / 4 }, (_, number) => bytes.readFloatLE(4 * number));
    const short = await this.api.embeddings.create({ ...asked, dimensions: 8 });
    const tokens = await this.api.embeddings.create({ model: this.model, input: [[1, 2], [3, 4]] });
    const vectors = packed.data.map((item) => item.embedding);
    const same = (left, right) => JSON.stringify(left) === JSON.stringify(right);
    return {
      vectors: vectors.length,
      dimensions: vectors[0].length,
      same_in_both_codings:
        same(vectors, plain.data.map((item) => item.embedding)) && same(decoded, plain.data[0].embedding),
      length_is_one: Math.abs(vectors[0].reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4,
      usage: [packed.usage.prompt_tokens, packed.usage.total_tokens],
      raw: typeof coded,
      asked_dimensions: short.data[0].embedding.length,
      tokens: [tokens.usage.prompt_tokens, tokens.usage.total_tokens],
      model: packed.model,
      object: packed.object,
    };
  }

  async completion() {
    const asked = { model: this.model, prompt: "one two", max_tokens: 4, temperature: 0, ignore_eos: true };
    const whole = await this.api.completions.create(asked);
    const options = { stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await this.api.completions.create({ ...asked, ...options }));
    const texts = chunks.filter((chunk) => chunk.choices.length).map((chunk) => chunk.choices[0].text);
    return {
      object: whole.object,
      text: whole.choices[0].text,
      usage: usage(whole.usage),
      streamed: texts.join("") === whole.choices[0].text,
      streamed_usage: usage(chunks.at(-1).usage),
    };
  }

  async response() {
    const asked = { model: this.model, max_output_tokens: 40, metadata: { tierwise_output_tokens: "4" } };
    const answer = await this.api.responses.create({ ...asked, input: "one two three", instructions: "be brief" });
    const tool = { type: "function", strict: false, ...TOOLS[0].function };
    const called = await this.api.responses.create({ ...asked, input: USER, tools: [tool] });
    return {
      object: answer.object,
      status: answer.status,
      text: answer.output_text,
      usage: [answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens],
      model: answer.model,
      function: called.output[0].name,
      arguments: JSON.parse(called.output[0].arguments),
    };
  }

  async response_stream() {
    const stream = await this.api.responses.create({
      model: this.model,
      input: "one two three",
      max_output_tokens: 40,
      metadata: { tierwise_output_tokens: "4" },
      stream: true,
    });
    const events = await collect(stream);
    const found = events.at(-1).response.usage;
    return {
      types: [...new Set(events.map((event) => event.type))],
      text: events
        .filter((event) => event.type === "response.output_text.delta")
        .map((event) => event.delta)
        .join(""),
      usage: [found.input_tokens, found.output_tokens, found.total_tokens],
      in_order: events.every((event, number) => event.sequence_number === number),
    };
  }

  async models() {
    const listed = (await collect(this.api.models.list())).map((model) => model.id);
    const one = await this.api.models.retrieve(this.model);
    const { says: _, ...unknown } = await this.refused(this.api.models.retrieve(`${this.model}-unknown`));
    return {
      listed: listed.includes(this.model),
      id: one.id,
      object: one.object,
      owned_by: one.owned_by,
      created: one.created > 1_600_000_000,
      unknown,
    };
  }

  async unknown_model() {
    return this.refused(this.chat({ model: `${this.model}-unknown` }));
  }

  async bad_request() {
    return this.refused(this.chat({ tokens: 0 }));
  }

  async missing_model() {
    return this.refused(this.api.post("/chat/completions", { body: { messages: USER } }));
  }

  async unauthorized() {
    const api = this.api.withOptions({ apiKey: this.config.denied_key });
    return this.refused(this.chat({ api, model: this.config.denied_model }));
  }

  async rate_limit() {
    const before = (await this.stats()).received;
    const limited = { fail_next: 1, status: 429, retry_after: 1 };
    await this.faults(limited);
    let seen = { error: null };
    let retryAfter = null;
    try {
      await this.chat();
    } catch (error) {
      seen = failure(error);
      retryAfter = error.headers.get("retry-after");
    }
    await pause(1200); // until then a gateway may refuse by itself, and not ask the provider
    await this.faults(limited);
    const began = performance.now();
    const retried = await this.chat({ api: this.api.withOptions({ maxRetries: 1 }) });
    const waited = performance.now() - began;
    return {
      ...seen,
      retry_after: retryAfter,
      retried: Boolean(retried.choices[0].message.content),
      waited: waited >= 990 && waited < 2000,
      asked: (await this.stats()).received - before,
    };
  }

  async unavailable() {
    await this.faults({ fail_next: 1, status: 503 });
    const seen = await this.refused(this.chat());
    await this.faults({ fail_next: 1, status: 503 });
    const retried = await this.chat({ api: this.api.withOptions({ maxRetries: 1 }) });
    return { ...seen, retried: Boolean(retried.choices[0].message.content) };
  }

  async cancel() {
    const before = await this.stats();
    const stream = await this.chat({ tokens: 2000, stream: true });
    let count = 0;
    for await (const chunk of stream) {
      count += chunk.choices.length ? 1 : 0;
      if (count === 3) break;
    }
    stream.controller.abort();
    return { began: count === 3, ...(await this.left(before)), next: await this.works() };
  }

  async timeout() {
    const before = await this.stats();
    let name = null;
    try {
      await this.chat({ tokens: 20_000, options: { timeout: 400 } });
    } catch (error) {
      // Its name in the client for Python.
      name = error instanceof OpenAI.APIConnectionTimeoutError ? "APITimeoutError" : error.constructor.name;
    }
    return { error: name, ...(await this.left(before)), next: await this.works() };
  }

  async large() {
    const text = "ä".repeat(3 << 19) + " end";
    const answer = await this.chat({ messages: [{ role: "user", content: text }] });
    return { content: answer.choices[0].message.content, usage: usage(answer.usage) };
  }

  async too_large() {
    const { status, code } = await this.refused(
      this.chat({ messages: [{ role: "user", content: "x".repeat(17 << 20) }] }),
    );
    return { status: status ?? null, code: code ?? null };
  }

  async concurrent() {
    const lengths = Array.from({ length: 20 }, (_, number) => number + 3);
    const seen = await Promise.all(
      lengths.map((tokens) =>
        this.streamed({
          tokens,
          messages: [{ role: "user", content: "w ".repeat(tokens) }],
          stream_options: { include_usage: true },
        }),
      ),
    );
    return {
      streams: seen.length,
      texts: seen.every((each, number) => each.content === words(lengths[number])),
      usages: seen.every((each, number) => {
        const n = lengths[number];
        return JSON.stringify(each.usage) === JSON.stringify([n, n, 2 * n]);
      }),
    };
  }
}

function fits(expected, seen, config) {
  if (expected !== null && typeof expected === "object") {
    if (seen === null || typeof seen !== "object" || Array.isArray(expected) !== Array.isArray(seen)) return false;
    const names = Object.keys(expected);
    return names.length === Object.keys(seen).length && names.every((name) => fits(expected[name], seen[name], config));
  }
  if (expected === "$any") return true;
  if (expected === "$text") return (typeof seen === "string" || Array.isArray(seen)) && seen.length > 0;
  if (expected === "$count") return Number.isInteger(seen) && seen > 0;
  if (typeof expected === "string" && expected.startsWith("{")) return seen === config[expected.slice(1, -1)];
  return expected === seen;
}

function expectation(scenario, kind) {
  if (kind === "gateway") return scenario.expect;
  if (kind === "real") return scenario.real ?? null;
  return scenario.control === null ? null : { ...scenario.expect, ...scenario.control };
}

const config = JSON.parse(readFileSync(process.argv[2], "utf8"));
const scenarios = new Scenarios(config);
let failed = 0;
for (const scenario of JSON.parse(readFileSync(new URL("../scenarios.json", import.meta.url), "utf8"))) {
  const expected = expectation(scenario, config.kind);
  if (expected === null) continue;
  const began = performance.now();
  let seen;
  try {
    seen = await scenarios[scenario.name === "chat" ? "chat_" : scenario.name]();
  } catch (error) {
    seen = { raised: `${error?.constructor?.name}: ${error?.message}` };
  }
  const ok = fits(expected, seen, config);
  failed += ok ? 0 : 1;
  const line = { name: scenario.name, ok, seconds: Math.round(performance.now() - began) / 1000 };
  console.log(JSON.stringify(ok ? line : { ...line, seen, expected }));
}
process.exitCode = failed ? 1 : 0;
