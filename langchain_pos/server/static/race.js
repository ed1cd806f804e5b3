// A race: the question once more side by side, and then sequentially; both are run.

import { Answer } from "./answer.js";
import { fromTemplate } from "./dom.js";
import { showFigures, verdict } from "./figures.js";
import { sequentially } from "./settings.js";

/** Run it in a turn; `run(answer, body)` answers, and returns the seconds that it took. */
export async function race(turn, say, run) {
  turn.place.querySelector(".race-view")?.remove();
  const place = fromTemplate("race-template");
  turn.place.append(place);
  place.scrollIntoView({ block: "nearest" });
  const bodies = [turn.body, sequentially(turn.body)];
  const ran = [];
  for (const [number, lane] of [...place.querySelectorAll(".lane")].entries()) {
    const name = lane.firstElementChild.firstElementChild.textContent;
    const answer = new Answer((what) => say(`Race, ${name.toLowerCase()}: ${what}`));
    lane.append(answer.place);
    ran.push({ result: null, seconds: await run(answer, bodies[number], lane.querySelector(".clock")) });
    ran.at(-1).result = answer.result;
  }
  const found = verdict(ran);
  showFigures(place.querySelector(".verdict"), found);
  return found;
}
