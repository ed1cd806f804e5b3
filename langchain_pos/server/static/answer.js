// One answer while it is written, and when it is done.
//
// While the branches write, each has a card; the text of the answer, in reading order, stands below.
// When all is written the answer stands first, and stages and cards fold away below it.

import { clean, count, fromTemplate, makeScrollable, seconds } from "./dom.js";
import { Block, readSkeleton } from "./branches.js";
import { figures, Pace, remarks, showFigures, summary } from "./figures.js";
import { drawAll, Growing, redraw } from "./growing.js";
import { showTimeline } from "./timeline.js";

const END_MARK = "####%%%%"; // closes a skeleton; see results/data.py

export class Answer {
  result = null;
  #blocks = [];
  #skeleton = ""; // of the block that is being planned
  #planning = null; // that block, as far as it is known
  #stage = "";
  #pace = new Pace();
  #say;

  /** `say` is called with what it is doing, once for each stage. */
  constructor(say) {
    this.place = fromTemplate("answer-template");
    const part = (name) => this.place.querySelector(`.${name}`);
    [this.work, this.stages, this.timeline] = [part("work"), part("stages"), part("timeline")];
    [this.figure, this.remarks, this.thinking] = [part("figure"), part("remarks"), part("thoughts")];
    this.thoughts = new Growing(this.thinking.lastElementChild);
    this.reply = new Growing(part("reply"));
    this.#say = say;
  }

  get text() {
    return this.reply.text.trim();
  }

  take(chunk) {
    const news = chunk.reasoning_delta;
    const { content, reasoning_content: thought } = chunk.choices?.[0]?.delta ?? {};
    // Later it repeats, for other clients, what `reasoning_delta` has said.
    if (thought && ["", "think"].includes(this.#stage)) this.#think(thought);
    if (news?.titles) this.#planned(news.block, news.titles);
    else if (news?.stage === "plan") this.#plan(news.text);
    else if (news?.stage === "expand") this.#branch(news);
    if (content) this.#write(content);
    if (chunk.reasoning) this.result = chunk.reasoning;
    redraw(this);
  }

  #think(text) {
    this.#pace.add();
    if (!this.#stage) this.#enter("think", "Thinking"); // no stage of ours
    this.thinking.hidden = false;
    this.thoughts.add(text);
  }

  #plan(text) {
    this.#pace.add();
    this.#enter("plan", this.#blocks.length ? "Planning further branches" : "Planning");
    this.#planning ??= this.#add();
    if (this.#skeleton.includes(END_MARK)) this.#skeleton = ""; // that one was not good enough
    this.#skeleton += text;
  }

  /** What a frame draws: figures, and the skeleton so far, title by title. */
  draw() {
    if (!this.result) showFigures(this.figure, this.#pace.figures());
    if (!this.#planning) return;
    const { preamble, titles } = readSkeleton(this.#skeleton);
    if (!this.#blocks.length) this.#planning.preamble.finish(preamble);
    this.#planning.name(titles);
  }

  #planned(number, titles) {
    this.draw();
    const block = this.#planning ?? this.#add();
    this.#planning = null;
    this.#skeleton = "";
    this.#blocks[number] = block;
    block.name(titles);
    this.#enter("expand", `Writing ${count(titles.length, "branch", "branches")} side by side`);
  }

  #add() {
    const block = new Block(this.#blocks.length);
    this.work.querySelector(".blocks").append(block.place);
    this.work.hidden = false;
    return block;
  }

  #branch({ block, branch, text, finish_reason: ending }) {
    const card = this.#blocks[block].cards[branch];
    if (text) {
      this.#pace.add(branch);
      card.write(text);
    }
    if (ending) card.end(ending);
  }

  #write(text) {
    if (this.#planning) {
      // What seemed to open a block did not: an answer without branches, or the text goes on.
      this.#planning.place.remove();
      this.#planning = null;
      this.#skeleton = "";
      this.work.hidden = !this.#blocks.length;
    }
    const open = this.#blocks.at(-1)?.cards.some((card) => ["planned", "writing"].includes(card.kind));
    if (!open) {
      this.#pace.add();
      this.#enter("conclude", this.#blocks.length ? "Concluding" : "Writing the answer");
    }
    this.reply.add(this.reply.text ? text : text.trimStart());
  }

  #enter(stage, status) {
    if (stage === this.#stage) return;
    if (this.#stage === "think") this.thinking.open = false;
    this.#stage = stage;
    this.#say(status);
    let after = false;
    for (const part of this.stages.children) {
      const now = part.dataset.stage === stage;
      if (now) part.dataset.state = "begun";
      if (now) part.setAttribute("aria-current", "step");
      else part.removeAttribute("aria-current");
      if (after) part.removeAttribute("data-state"); // a lead-in was written before the plan
      after ||= now;
    }
  }

  /** The stream has ended: with the result, or before there was one. */
  close(status) {
    redraw(this);
    drawAll(); // of a plan that was not whole, what there was of it
    for (const part of this.stages.children) part.removeAttribute("aria-current");
    for (const block of [...this.#blocks, this.#planning].filter(Boolean)) {
      for (const card of block.cards) if (card.kind === "writing") card.end("cancelled");
    }
    if (this.result) this.#finish(this.result);
    this.reply.finish();
    this.thoughts.finish();
    drawAll();
    if (this.result) for (const text of this.place.querySelectorAll(".text")) text.scrollTop = 0; // to be read
    this.#say(status ?? summary(this.result));
    makeScrollable(this.place.querySelectorAll(".text, .note, .remarks, .timeline > div, pre, .table"));
  }

  #finish(result) {
    result.blocks.forEach(({ plan, branches }, number) => {
      const block = (this.#blocks[number] ??= this.#add());
      block.name(plan.steps.map((step) => step.title));
      block.preamble.finish(plan.preamble);
      for (const { index, finish_reason: ending, error, text } of branches) {
        block.cards[index].end(ending, error ?? "", text);
      }
    });
    for (const part of this.stages.children) {
      const passes = result.forward_passes[part.dataset.stage];
      const took = seconds(result.timings[part.dataset.stage]);
      part.lastElementChild.textContent = passes ? `${count(passes, "pass", "passes")}, ${took}` : "";
    }
    const cards = this.#blocks.reduce((total, block) => total + block.cards.length, 0);
    this.work.hidden = !cards;
    this.work.open = false;
    this.work.firstElementChild.after(this.stages);
    this.place.firstElementChild.after(this.reply.place, this.remarks);
    this.work.firstElementChild.textContent = `The plan and its ${count(cards, "branch", "branches")}`;
    this.remarks.textContent = clean(remarks(result).join("\n"));
    showFigures(this.figure, figures(result));
    showTimeline(this.timeline, result);
  }
}
