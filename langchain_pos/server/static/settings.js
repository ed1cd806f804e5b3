// The drawer: how the next answers are written. Nothing is kept when the page is left.

import { $, count } from "./dom.js";

const NUMBERS = ["temperature", "seed", "max_branches", "max_branch_tokens", "max_tokens"];

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

/** The fields of a request; what is left empty is the server's to choose. Null where one is wrong. */
export function fields() {
  if (!$("settings-form").checkValidity()) {
    open();
    $("settings-form").reportValidity();
    return null;
  }
  const found = { reasoning_mode: $("mode").value };
  const steps = lines("steps");
  if (steps.length) found.steps = steps;
  for (const name of NUMBERS) if ($(name).value) found[name] = Number($(name).value);
  return found;
}

/** The same question, answered sequentially. */
export function sequentially({ steps, max_branches, max_branch_tokens, ...body }) {
  return { ...body, reasoning_mode: "sequential" };
}

export const systemPrompt = () => $("system").value.trim();

function open() {
  if (!$("settings").open) $("settings").showModal();
}

/** Settings that differ from the server's are counted on the button: none works unseen. */
function counted() {
  const changed = [...$("settings-form").elements]
    .filter((field) => field.name && field.value !== (field.name === "mode" ? "auto" : ""));
  const note = changed.length ? ` (${changed.length})` : "";
  $("open-settings").textContent = `Settings${note}`;
  $("open-settings").title = changed.length ? `${count(changed.length, "setting")} changed` : "";
}

$("open-settings").addEventListener("click", open);
$("close-settings").addEventListener("click", () => $("settings").close());
$("settings").addEventListener("click", (event) => {
  if (event.target === $("settings")) $("settings").close(); // the ground beside the drawer
});
$("settings-form").addEventListener("input", counted);
$("settings-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("settings-form").reportValidity()) $("settings").close();
});
$("settings-form").addEventListener("reset", () => setTimeout(counted));
counted();
