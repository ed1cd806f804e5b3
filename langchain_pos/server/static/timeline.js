// When each stage and branch of an answer was written.

import { element, prose, seconds } from "./dom.js";
import { STAGES, sum } from "./figures.js";

/** Fill `details` with a row for each stage and branch; it stays hidden where nothing was timed. */
export function showTimeline(details, { blocks, timings }) {
  const rows = new Map();
  const bars = blocks.flatMap((block) => block.branches);
  const total = Math.max(sum(timings), ...bars.map((bar) => bar.ended));
  if (!total) return;
  const add = (key, label, start, end, kind) => {
    if (end <= start) return;
    if (!rows.has(key)) {
      const row = element("div", "row");
      row.append(prose(label, "label"), element("span", "track"));
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
  details.lastElementChild.replaceChildren(...rows.values());
  details.lastElementChild.append(element("p", "muted", `0 to ${seconds(total)}`));
  details.hidden = false;
}
