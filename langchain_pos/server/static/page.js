// Asks /v1/chat/completions; answer.js shows what comes.

import { Answer } from "./answer.js";
import { $, clean } from "./dom.js";
import { plainText } from "./figures.js";

// ------------------------------------------------------------------------------- the stream

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the stream ended before the answer did; ask again");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}

// -------------------------------------------------------------------------------------- asking

let model = null; // its name; asked for once
let running = null; // the AbortController of the answer under way
let answer = null;

function headers() {
  const key = $("key").value.trim(); // in this field only, nowhere else
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function refused(response) {
  const told = await response.json().catch(() => null);
  const after = response.headers.get("Retry-After");
  const again = after ? ` (try again in ${after} s)` : "";
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  return new Error((told?.error?.message ?? `the server answered ${response.status}`) + again);
}

async function request(path, options) {
  const response = await fetch(path, { ...options, headers: headers() }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is it still running?");
  });
  if (!response.ok) throw await refused(response);
  return response;
}

async function findModel(signal) {
  if (model === null) {
    const listed = await (await request("v1/models", { signal })).json();
    model = listed.data[0].id;
    $("model").textContent = clean(model);
  }
  return model;
}

async function ask() {
  const content = $("question").value;
  if (running || !content.trim()) return;
  running = new AbortController();
  const { signal } = running;
  answer = new Answer();
  const began = performance.now();
  const tick = () => ($("clock").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`);
  const clock = setInterval(tick, 100);
  let status;
  tick();
  $("status").textContent = "Asked; waiting for the first token";
  switchTo("stop", "submit");
  // On a narrow screen the answer stands below the question.
  if ($("answer").getBoundingClientRect().top > innerHeight / 2) $("answer").scrollIntoView();
  try {
    const body = JSON.stringify({
      model: await findModel(signal),
      messages: [{ role: "user", content }],
      reasoning_mode: $("mode").value,
      stream: true,
    });
    const response = await request("v1/chat/completions", { method: "POST", body, signal });
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.take(chunk);
    }
  } catch (error) {
    status = signal.aborted ? "Stopped" : "There is no whole answer";
    if (!signal.aborted) $("error").textContent = clean(error.message);
  } finally {
    clearInterval(clock);
    tick();
    running.abort(); // frees the slots where it was this page that failed
    running = null;
    answer.close(status);
    switchTo("submit", "stop");
  }
}

/** Enable one button in place of the other; who stood on the other stands on it now. */
function switchTo(on, off) {
  const stood = document.activeElement === $(off);
  $(on).disabled = false;
  $(off).disabled = true;
  if (stood) $(on).focus();
}

async function copy(text) {
  // Browsers have it for pages of this machine, and of others over https.
  const copied = navigator.clipboard?.writeText(text) ?? Promise.reject(new Error("no https"));
  await copied.then(
    () => ($("status").textContent = "Copied"),
    (error) => ($("error").textContent = `nothing was copied (${error.message}); select the text`),
  );
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("demo").addEventListener("click", () => {
  $("question").value = $("question").defaultValue;
  $("question").focus();
});
$("copy-text").addEventListener("click", () => copy(plainText(answer.result)));
$("copy-json").addEventListener("click", () => copy(JSON.stringify(answer.result, null, 2)));

if (document.documentElement.dataset.wantsKey === "yes") $("key-field").hidden = false;
else findModel().catch((error) => ($("error").textContent = clean(error.message)));
