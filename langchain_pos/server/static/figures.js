// What an answer has cost, beside what plain decoding would have, in figures and words.

import { count, seconds } from "./dom.js";

export const ENDINGS = {
  length: "cut off at its token budget",
  cancelled: "cancelled",
  error: "failed",
};
export const STAGES = ["plan", "expand", "conclude"];

export const sum = (stages) => STAGES.reduce((total, stage) => total + stages[stage], 0);
export const times = (ratio) => `${ratio.toFixed(ratio < 10 ? 1 : 0)}×`;
const perSecond = (tokens, took) => `${(tokens / took).toFixed(tokens / took < 10 ? 1 : 0)} tokens/s`;

/** What plain decoding would have cost, as `SequentialEstimate` computes it (timeline.py). */
export function sequentialEstimate({ mode, usage, timings, forward_passes: passes }) {
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

/** The figures of a whole answer: the large one, what stands beside it, and how it was computed. */
export function figures(result) {
  const [took, passes] = [sum(result.timings), sum(result.forward_passes)];
  const tokens = result.usage.output_tokens;
  if (!took || !passes || !tokens) return null;
  const beside = `${perSecond(tokens, took)} · ${count(passes, "pass", "passes")}, ${seconds(took)}`;
  const estimate = sequentialEstimate(result);
  if (!estimate) return { large: "", beside, how: "" };
  const ratio = estimate.seconds / took;
  return {
    large: ratio < 1.05 ? "Not faster here" : `Up to ${times(ratio)} faster`,
    beside,
    how:
      `An estimate against one token at a time without drafts, not run: ${estimate.tokens} tokens × ` +
      `${(estimate.pass * 1000).toFixed(1)} ms, the mean pass of this answer's quickest stage, are at ` +
      `most about ${seconds(estimate.seconds)}. A race measures.`,
  };
}

/** Figures while an answer is written. A piece is a token or more, and a pass writes one a branch. */
export class Pace {
  #began = performance.now();
  #pieces = 0;
  #passes = 0;
  #together = new Set(); // branches that this pass has written to

  add(branch = null) {
    this.#pieces += 1;
    if (branch === null || this.#together.has(branch)) this.#together.clear();
    if (!this.#together.size) this.#passes += 1;
    if (branch !== null) this.#together.add(branch);
  }

  figures() {
    const took = (performance.now() - this.#began + 1) / 1000;
    if (!this.#pieces) return null;
    const ratio = this.#pieces / this.#passes;
    return {
      large: ratio < 1.05 ? "" : `${times(ratio)} so far`,
      beside: `${ratio < 1.05 ? "" : "as many tokens a pass as one at a time · "}${perSecond(this.#pieces, took)} at least`,
      how: "",
    };
  }
}

const wasCut = ({ finish_reason: ending, blocks }) =>
  [ending, ...blocks.flatMap((block) => block.branches).map((branch) => branch.finish_reason)].includes("length");

/** A race between two answers, each with the seconds this page has waited for it. */
export function verdict([side, alone]) {
  const [ours, theirs] = [side.result.usage.output_tokens, alone.result.usage.output_tokens];
  const ratio = alone.seconds / side.seconds;
  const rate = ours / side.seconds / (theirs / alone.seconds);
  const faster = ratio >= 1 ? `${times(ratio)} faster side by side` : `${times(1 / ratio)} faster one after another`;
  const cut = [wasCut(side.result) && "side by side", wasCut(alone.result) && "one after another"].filter(Boolean);
  return {
    large: cut.length ? "Not a fair race" : faster,
    beside: `${seconds(side.seconds)} against ${seconds(alone.seconds)}`,
    how:
      (cut.length ? `Cut off at a token budget: ${cut.join(" and ")}; raise it in the settings. ` : "") +
      `Measured: both were run, the second after the first so that neither slowed the other down, ` +
      `each from the request to its last word. Side by side ${ours} tokens, ` +
      `${perSecond(ours, side.seconds)}; one after another ${theirs} tokens, ` +
      `${perSecond(theirs, alone.seconds)}: ${times(rate)} as many a second.`,
  };
}

export function showFigures(place, found) {
  place.hidden = !found;
  if (!found) return;
  const [large, beside, how] = place.children;
  large.textContent = found.large;
  beside.textContent = found.beside;
  how.textContent = found.how;
}
