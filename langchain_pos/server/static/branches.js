// A plan and its branches while they are written: a card for each step.

import { clean, count, element, prose } from "./dom.js";
import { ENDINGS } from "./figures.js";
import { Growing } from "./growing.js";

class Card {
  constructor(number) {
    this.place = element("li", "card");
    const head = element("h4", "", `${number}.`);
    this.title = head.appendChild(element("bdi"));
    this.state = head.appendChild(element("span", "state"));
    this.body = new Growing(prose());
    this.note = prose("", "note");
    this.place.append(head, this.body.place, this.note);
    this.become("planned");
  }

  become(state, error = "") {
    if (this.kind === state && !error) return;
    this.kind = state;
    this.place.className = `card ${state}`;
    this.state.textContent = { writing: "writing", stop: "✓" }[state] ?? "";
    this.state.classList.toggle("unseen", state === "writing"); // the caret shows it
    this.note.textContent = clean([ENDINGS[state], error].filter(Boolean).join(": "));
  }

  write(piece) {
    this.become("writing");
    this.body.add(piece);
  }

  end(state, error, text) {
    this.become(state, error);
    this.body.finish(text);
  }
}

export class Block {
  cards = [];

  constructor(number) {
    this.place = element("section", "block");
    this.heading = element("h3", "unseen");
    this.number = number;
    this.preamble = new Growing(prose());
    this.grid = element("ol", "cards");
    this.grid.setAttribute("role", "list"); // which some browsers forget without bullets
    this.place.append(this.heading, this.preamble.place, this.grid);
    this.name([]);
  }

  /** Give the cards their titles; as many cards as titles. */
  name(titles) {
    while (this.cards.length > titles.length) this.cards.pop().place.remove();
    while (this.cards.length < titles.length) {
      const card = new Card(this.cards.length + 1);
      this.cards.push(card);
      this.grid.append(card.place);
    }
    titles.forEach((title, index) => {
      const shown = clean(title);
      const place = this.cards[index].title;
      if (place.textContent !== shown) place.textContent = shown;
    });
    const size = titles.length <= 4 ? "few" : titles.length > 20 ? "many" : "";
    this.grid.className = `cards ${size}`;
    const which = this.number ? "further " : "";
    this.heading.textContent = count(titles.length, `${which}branch`, `${which}branches`);
  }
}

const MARKS = /^ {0,3}(?:(?:\d{1,2}[.)、．]|[-*+•]|#{2,4})[ \t]*)+/; // of a list in the model's own form

/** What a skeleton says so far: the text before its first step, and the steps' titles.
 *
 * `####title:......` in the paper's form; in the model's own, lines such as `1. **title**: ...`.
 */
export function readSkeleton(text) {
  if (/^#{4}\S/m.test(text)) {
    const [preamble, ...steps] = text.split("####");
    const titles = steps.map((step) => step.replace(/#*$/, "").replace(/:?\.*\s*$/, "").trim());
    return { preamble: preamble.trim(), titles: titles.filter((title) => !/^%*$/.test(title)) };
  }
  const lines = text.split("\n");
  const first = lines.findIndex((line) => MARKS.test(line) || line.startsWith("**"));
  const steps = first < 0 ? [] : lines.slice(first);
  const titles = steps.map((line) => line.replace(MARKS, "").replace(/[*:：. ]+$/, "").replace(/^\*+/, ""));
  const preamble = lines.slice(0, first < 0 ? lines.length : first).join("\n");
  return { preamble: preamble.replace(/#*$/, "").trim(), titles: titles.filter(Boolean) };
}
