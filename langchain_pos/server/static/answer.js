// One answer while it is written.
//
//   Growing   a text that grows by pieces; drawn once a frame, whatever the pace of the stream
//   Block     one plan with a card for each step
//   Answer    takes the chunks of the stream and shows all of it
//
// What a model wrote goes into text nodes only, never into markup.

import { $, clean, count, element, prose, seconds } from "./dom.js";
import { ENDINGS, remarks, showCost, showTimeline, summary } from "./figures.js";

const END_MARK = "####%%%%"; // closes a skeleton; see schema.py
const NODE_CHARACTERS = 4096; // of a text node; a longer text goes on in another one

// ------------------------------------------------------------------------------ growing text

const changed = new Set(); // what the next frame draws
let frame = 0;

function redraw(thing) {
  changed.add(thing);
  frame ||= requestAnimationFrame(drawAll);
}

function drawAll() {
  cancelAnimationFrame(frame); // where it is not the frame that calls
  frame = 0;
  const things = [...changed];
  changed.clear();
  // Layout is read before anything is written, and once after: reading in between would cost a
  // layout for every card.
  const following = things.filter((thing) => thing.atEnd?.());
  for (const thing of things) thing.draw();
  for (const thing of following) thing.place.scrollTop = thing.place.scrollHeight;
}

class Growing {
  #pending = "";
  #node = null;

  empty = true;

  constructor(place) {
    this.place = place;
  }

  get text() {
    return this.place.textContent + this.#pending;
  }

  add(piece) {
    this.#pending += clean(piece);
    this.empty &&= !piece;
    redraw(this);
  }

  set(text) {
    this.#pending = "";
    this.empty = !text;
    text = clean(text);
    if (this.place.textContent === text) return;
    this.place.textContent = text;
    this.#node = null;
  }

  atEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.place;
    return scrollTop + clientHeight >= scrollHeight - 4;
  }

  draw() {
    if (!this.#pending) return;
    if (!this.#node || this.#node.length > NODE_CHARACTERS) {
      this.#node = document.createTextNode("");
      this.place.append(this.#node);
    }
    this.#node.appendData(this.#pending);
    this.#pending = "";
  }
}

// --------------------------------------------------------------------------- plan and branches

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
}

class Block {
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

// ----------------------------------------------------------------------------------- an answer

export class Answer {
  result = null;
  #blocks = [];
  #skeleton = ""; // of the block that is being planned
  #planning = null; // that block, as far as it is known
  #began = performance.now();
  #pieces = 0;
  #stage = "";
  #conclusion = new Growing($("conclusion").querySelector(".text"));

  constructor() {
    changed.clear();
    this.#conclusion.set("");
    for (const id of ["blocks", "remarks", "error", "estimate"]) $(id).replaceChildren();
    for (const id of ["conclusion", "copying", "timeline"]) $(id).hidden = true;
    for (const bar of $("cost").querySelectorAll(".bar")) bar.style.width = 0;
    for (const id of ["own", "alone"]) $(id).textContent = "";
    $("cost").hidden = true;
    for (const part of $("stages").children) {
      part.lastElementChild.textContent = "";
      part.removeAttribute("data-state");
    }
    $("timeline").lastElementChild.replaceChildren();
  }

  take(chunk) {
    const told = chunk.reasoning_delta;
    const content = chunk.choices?.[0]?.delta?.content;
    if (told?.text) this.#pieces += 1;
    if (told?.titles) this.#planned(told.block, told.titles);
    else if (told?.stage === "plan") this.#plan(told.text);
    else if (told?.stage === "expand") this.#branch(told);
    if (content) this.#conclude(content);
    if (chunk.reasoning) this.result = chunk.reasoning;
  }

  #plan(text) {
    this.#enter("plan", this.#blocks.length ? "Planning further branches" : "Planning");
    if (!this.#planning) {
      this.#planning = this.#add();
      this.#planning.preamble.set(this.#conclusion.text.trim());
      this.#conclusion.set("");
      $("conclusion").hidden = true;
    }
    if (this.#skeleton.includes(END_MARK)) this.#skeleton = ""; // that one was not good enough
    // The conclusion has written the mark that opens a further block.
    if (!this.#skeleton && this.#blocks.length) this.#skeleton = "####";
    this.#skeleton += text;
    redraw(this);
  }

  /** The skeleton so far, title by title. */
  draw() {
    this.#count();
    if (!this.#planning) return;
    const [preamble, ...steps] = this.#skeleton.split("####");
    if (!this.#blocks.length) this.#planning.preamble.set(preamble.replace(/#*$/, "").trim());
    const titles = steps.map((step) => step.replace(/#*$/, "").replace(/:?\.*\s*$/, "").trim());
    this.#planning.name(titles.filter((title) => !/^%*$/.test(title)));
  }

  #planned(number, titles) {
    this.draw();
    const block = this.#planning ?? this.#add();
    this.#planning = null;
    this.#skeleton = "";
    this.#blocks[number] = block;
    block.name(titles);
    this.#enter("expand", `Writing ${count(titles.length, "branch", "branches")} side by side`);
    $("conclusion").hidden = true;
  }

  #add() {
    const block = new Block(this.#blocks.length);
    $("blocks").append(block.place);
    return block;
  }

  #branch({ block, branch, text, finish_reason: ending }) {
    const card = this.#blocks[block].cards[branch];
    if (text) card.write(text);
    if (ending) card.become(ending);
    redraw(this);
  }

  #conclude(text) {
    const last = this.#blocks.at(-1);
    if (this.#planning) {
      // What seemed to open a block did not: an answer without branches, or the conclusion goes on.
      this.#planning.place.remove();
      if (last) this.#conclusion.set(this.#planning.preamble.text);
      this.#planning = null;
      this.#skeleton = "";
    } else if (last?.number && this.#stage === "expand" && last.cards.every((card) => card.body.empty)) {
      last.preamble.add(text); // the end of the text before a further block
      return;
    }
    this.#enter("conclude", last ? "Concluding" : "Writing the answer sequentially");
    this.#pieces += 1;
    $("conclusion").hidden = false;
    this.#conclusion.add(this.#conclusion.empty ? text.trimStart() : text);
    redraw(this);
  }

  #enter(stage, status) {
    if (stage === this.#stage) return;
    this.#stage = stage;
    $("status").textContent = status;
    $("conclusion-title").textContent = this.#blocks.length ? "Conclusion" : "Answer";
    for (const part of $("stages").children) {
      const now = part.dataset.stage === stage;
      if (now) part.dataset.state = "begun";
      if (now) part.setAttribute("aria-current", "step");
      else part.removeAttribute("aria-current");
    }
  }

  /** Pieces of text so far. A piece is a token or more, and each token alone takes a pass. */
  #count() {
    if (this.result || !this.#pieces) return;
    $("cost").hidden = false;
    $("own").textContent = `${seconds((performance.now() - this.#began) / 1000)} so far`;
    $("alone").textContent = `at least ${count(this.#pieces, "pass", "passes")} so far`;
  }

  /** The stream has ended: with the result, or before there was one. */
  close(status) {
    redraw(this);
    drawAll();
    for (const part of $("stages").children) part.removeAttribute("aria-current");
    for (const block of [...this.#blocks, this.#planning].filter(Boolean)) {
      for (const card of block.cards) if (card.kind === "writing") card.become("cancelled");
    }
    if (this.result) this.#finish(this.result);
    $("status").textContent = status ?? summary(this.result);
    for (const place of $("answer").querySelectorAll(".text, .note, #remarks, #timeline > div")) {
      // A keyboard can scroll what has the focus.
      if (place.scrollHeight > place.clientHeight + 1) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
  }

  #finish(result) {
    result.blocks.forEach((told, number) => {
      const block = (this.#blocks[number] ??= this.#add());
      block.name(told.plan.steps.map((step) => step.title));
      block.preamble.set(told.plan.preamble);
      for (const branch of told.branches) {
        const card = block.cards[branch.index];
        card.body.set(branch.text);
        card.become(branch.finish_reason, branch.error ?? "");
      }
    });
    this.#conclusion.set(result.conclusion);
    $("conclusion-title").textContent = result.blocks.length ? "Conclusion" : "Answer";
    $("conclusion").hidden = !result.conclusion;
    $("remarks").textContent = clean(remarks(result).join("\n"));
    for (const part of $("stages").children) {
      const passes = result.forward_passes[part.dataset.stage];
      const took = seconds(result.timings[part.dataset.stage]);
      part.lastElementChild.textContent = passes ? `${count(passes, "pass", "passes")}, ${took}` : "";
    }
    showCost(result);
    showTimeline(result);
    $("copying").hidden = false;
  }
}
