// The page: asks, and shows what comes. One answer at a time is under way.

import { Answer } from "./answer.js";
import { answer as stream, findModel } from "./api.js";
import { save, Turn } from "./conversation.js";
import { $, clean } from "./dom.js";
import { showExamples } from "./examples.js";
import { race } from "./race.js";
import { fields, systemPrompt } from "./settings.js";

let running = null; // the AbortController of what is under way
let turns = []; // of this conversation; those without a whole answer are not read back

const say = (what) => ($("status").textContent = what);

// ---------------------------------------------------------------------------------- asking

async function ask(question) {
  const settings = fields();
  if (running || !question.trim() || !settings) return;
  const system = systemPrompt();
  const messages = [
    ...(system ? [{ role: "system", content: system }] : []),
    ...turns.filter((turn) => turn.whole).flatMap((turn) => turn.messages),
    { role: "user", content: question },
  ];
  const turn = new Turn({ ...settings, messages }, new Answer(say));
  turns.push(turn);
  $("welcome").hidden = true;
  $("question").value = "";
  $("new").disabled = false;
  turn.place.scrollIntoView({ block: "start" });
  await underWay(turn.place, () => run(turn.answer, turn.body, $("clock")));
  if (turn.whole) turn.offer(() => underWay(turn.place, () => compete(turn)));
  else $("question").value ||= question; // to be asked again, or in other words
  $("save").disabled = !turns.some((each) => each.whole);
}

async function compete(turn) {
  $("clock").textContent = ""; // each lane has its own
  const { large, beside } = await race(turn, say, run);
  say(`Race done: ${large}, ${beside}`);
}

/** Do `work` while nothing else is under way; whatever ends it, the page can be used again. */
async function underWay(place, work) {
  if (running) return;
  running = new AbortController();
  const { signal } = running;
  $("error").textContent = "";
  place.setAttribute("aria-busy", "true");
  switchTo("stop", "submit");
  try {
    await work();
  } catch (error) {
    if (!signal.aborted) $("error").textContent = clean(error.message);
    if (error.status === 401) $("key").focus(); // not where `introduced` fails: somebody may be writing
  } finally {
    running.abort(); // frees the slots where it was this page that failed
    running = null;
    place.removeAttribute("aria-busy");
    switchTo("submit", "stop");
  }
}

/** Answer a request; the seconds that it took. */
async function run(answer, body, clock) {
  const { signal } = running;
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const tick = () => (clock.textContent = `${seconds().toFixed(1)} s`);
  const ticking = setInterval(tick, 100);
  let status = signal.aborted ? "Stopped" : "The answer is incomplete";
  say("Asked; waiting for the first token");
  tick();
  try {
    for await (const chunk of stream(body, signal)) answer.take(chunk);
    status = undefined;
    return seconds();
  } catch (error) {
    if (signal.aborted) status = "Stopped";
    throw error;
  } finally {
    clearInterval(ticking);
    tick();
    answer.close(status);
  }
}

/** Show one button in place of the other; who stood on the other stands on it now. */
function switchTo(on, off) {
  const stood = document.activeElement === $(off);
  $(on).hidden = false;
  if (stood) $(on).focus({ preventScroll: true }); // both are always in sight; the answer is to stay so
  $(off).hidden = true;
}

// -------------------------------------------------------------------------------- the page

function startAnew() {
  running?.abort();
  turns = [];
  $("conversation").replaceChildren();
  for (const id of ["new", "save"]) $(id).disabled = true;
  $("welcome").hidden = false;
  for (const id of ["status", "clock"]) $(id).textContent = "";
  $("error").textContent = "";
  $("question").focus();
}

/** What is served, and what it can be asked. */
async function introduce() {
  const { id, demonstration = false } = await findModel();
  $("model").textContent = clean(id);
  $("banner").hidden = !demonstration;
  showExamples(demonstration, ask);
}

const introduced = () => introduce().catch((error) => ($("error").textContent = clean(error.message)));

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;
  const types = matchMedia("(pointer: coarse)").matches; // a touch screen has no other way to a new line
  if (types && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", startAnew);
$("save").addEventListener("click", () => save(turns.filter((turn) => turn.whole)));
$("key").addEventListener("change", introduced);

// What has the focus stays clear of the form, whose height depends on fonts and messages: the browser
// scrolls to what gets the focus, and this to what the form has grown over.
new ResizeObserver(([{ target: form }]) => {
  document.documentElement.style.scrollPaddingBottom = `${form.offsetHeight + 16}px`;
  const focused = document.activeElement?.closest("main *");
  if (!focused) return;
  const { top, bottom } = focused.getBoundingClientRect();
  const behind = bottom > form.getBoundingClientRect().top && top < innerHeight;
  if (behind) focused.scrollIntoView({ block: "nearest" });
}).observe($("ask"));

if (document.documentElement.dataset.wantsKey === "yes") {
  $("key-field").hidden = false; // until there is one, the server does not say what it serves
  showExamples(false, ask);
} else introduced();
