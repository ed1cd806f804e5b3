// What an answer has cost, beside what plain decoding would have, and when what was written.

import { $, clean, count, element, prose, seconds } from "./dom.js";

export const ENDINGS = {
  length: "cut off at its token budget",
  cancelled: "cancelled",
  error: "failed",
};
const STAGES = ["plan", "expand", "conclude"];

const sum = (stages) => STAGES.reduce((total, stage) => total + stages[stage], 0);

/** What plain decoding would have cost, as `SequentialEstimate` computes it (timeline.py). */
function sequentialEstimate({ mode, usage, timings, forward_passes: passes }) {
  const timed = STAGES.filter((stage) => passes[stage] && timings[stage]);
  if (mode === "sequential" || !timed.length) return null;
  const pass = Math.min(...timed.map((stage) => timings[stage] / passes[stage]));
  return { tokens: usage.output_tokens, pass, seconds: usage.output_tokens * pass };
}

export function summary(result) {
  const passes = count(sum(result.forward_passes), "pass", "passes");
  const estimate = sequentialEstimate(result);
  const alone = estimate ? `, sequentially about ${estimate.tokens}` : "";
  return `Done: ${passes}${alone}`;
}

export function remarks(result) {
  const said = [];
  if (result.fallback_reason) said.push(`Answered sequentially (${result.fallback_reason}).`);
  const ending = [ENDINGS[result.finish_reason], result.error].filter(Boolean).join(": ");
  if (ending) said.push(`The conclusion: ${ending}.`);
  const { queued } = result.timings;
  if (queued > 0.05) said.push(`It waited ${seconds(queued)} for other requests.`);
  return said;
}

export function showCost(result) {
  const passes = sum(result.forward_passes);
  const estimate = sequentialEstimate(result);
  $("cost").hidden = !estimate;
  if (!estimate) return;
  const most = Math.max(passes, estimate.tokens);
  $("own").textContent = `${passes} passes, ${seconds(sum(result.timings))}`;
  $("alone").textContent = `about ${estimate.tokens} passes, ${seconds(estimate.seconds)}`;
  $("own-bar").style.width = `${(100 * passes) / most}%`;
  $("alone-bar").style.width = `${(100 * estimate.tokens) / most}%`;
  $("estimate").textContent =
    `Estimate, not run: ${estimate.tokens} tokens × ${(estimate.pass * 1000).toFixed(1)} ms, the ` +
    `mean pass of this answer's quickest stage, are at most about ${seconds(estimate.seconds)}; ` +
    "the mode “sequential” measures it.";
}

export function showTimeline({ blocks, timings }) {
  const rows = new Map();
  const bars = blocks.flatMap((block) => block.branches);
  const total = Math.max(sum(timings), ...bars.map((bar) => bar.ended));
  if (!total) return;
  const add = (key, label, start, end, kind) => {
    if (end <= start) return;
    if (!rows.has(key)) {
      const row = element("div", "row");
      const named = prose(label, "label");
      row.append(named, element("span", "track"));
      rows.set(key, row);
    }
    const bar = element("i", `bar ${kind}`);
    bar.style.left = `${(100 * start) / total}%`;
    bar.style.width = `${Math.max((100 * (end - start)) / total, 0.3)}%`;
    rows.get(key).lastElementChild.append(bar);
  };
  let at = 0;
  if (blocks.length <= 1) {
    for (const stage of STAGES) add(stage, stage, at, (at += timings[stage]), stage);
  } else { // what lies between the blocks is not timed apart
    let between = "plan";
    for (const { branches } of blocks) {
      const start = Math.min(...branches.map((branch) => branch.started));
      const end = Math.max(...branches.map((branch) => branch.ended));
      add(between, between, at, start, between === "plan" ? "plan" : "mixed");
      add("expand", "expand", start, end, "expand");
      [at, between] = [end, "conclude, plan"];
    }
    add("conclude", "conclude", at, total, "conclude");
  }
  bars.forEach((bar, index) => add(index, bar.title, bar.started, bar.ended, "expand"));
  $("timeline").lastElementChild.replaceChildren(...rows.values());
  $("timeline").lastElementChild.append(element("p", "muted", `0 to ${seconds(total)}`));
  $("timeline").hidden = false;
}

/** The answer as people read it; control characters are left out here too. */
export function plainText({ blocks, conclusion }) {
  const parts = blocks.flatMap(({ plan, branches }) => [
    plan.preamble,
    branches.map((branch) => `${branch.title}: ${branch.text}`).join("\n"),
  ]);
  return clean([...parts, conclusion].filter(Boolean).join("\n\n"));
}
