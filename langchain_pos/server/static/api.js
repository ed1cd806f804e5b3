// The server's API, as any client has it: /v1/models and the stream of /v1/chat/completions.

import { $ } from "./dom.js";

let model = null; // as the server lists it; asked for once

function headers() {
  const key = $("key").value.trim(); // in this field only, nowhere else
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function refused(response) {
  const said = await response.json().catch(() => null);
  const after = response.headers.get("Retry-After");
  const again = after ? ` (try again in ${after} s)` : "";
  if (response.status === 401) $("key-field").hidden = false;
  const busy = response.status === 503 ? "The server is busy: " : "";
  const message = said?.error?.message ?? `the server answered ${response.status}`;
  return Object.assign(new Error(busy + message + again), { status: response.status });
}

async function request(path, options) {
  const response = await fetch(path, { ...options, headers: headers() }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is it still running?");
  });
  if (!response.ok) throw await refused(response);
  return response;
}

export async function findModel(signal) {
  model ??= (await (await request("v1/models", { signal })).json()).data[0];
  return model;
}

/** The chunks of an answer; throws what went wrong, in words for people. */
export async function* answer(body, signal) {
  const { id } = await findModel(signal);
  const asked = JSON.stringify({ ...body, model: id, stream: true });
  const options = { method: "POST", body: asked, signal };
  const response = await request("v1/chat/completions", options);
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("the connection broke before the answer was whole; ask again");
    });
    if (done) throw new Error("the stream ended before the answer did; ask again");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}
