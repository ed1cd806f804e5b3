// Texts that grow by pieces, drawn once a frame, whatever the pace of the stream.

import { clean } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const NODE_CHARACTERS = 4096; // of a text node; a longer text goes on in another one

const changed = new Set(); // what the next frame draws
let frame = 0;

export function redraw(thing) {
  changed.add(thing);
  frame ||= requestAnimationFrame(drawAll);
}

export function drawAll() {
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

/** Plain while it grows, so that many may; markdown once it is whole. */
export class Growing {
  #text = "";
  #pending = "";
  #node = null;

  constructor(place) {
    this.place = place;
  }

  add(piece) {
    this.#text += piece;
    this.#pending += clean(piece);
    redraw(this);
  }

  set(text) {
    this.#text = text;
    this.#pending = "";
    this.#node = null;
    if (this.place.textContent !== clean(text)) this.place.textContent = clean(text);
  }

  finish(text = this.#text) {
    this.#text = text;
    this.#pending = "";
    this.#node = null;
    this.place.classList.add("markdown");
    showMarkdown(this.place, text);
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

/** Markdown all along. The longer it takes to draw, the more seldom it is drawn. */
export class Reply {
  text = "";
  #next = 0;

  constructor(place) {
    this.place = place;
  }

  add(piece) {
    this.text += piece;
    redraw(this);
  }

  draw() {
    if (performance.now() < this.#next) redraw(this);
    else this.finish();
  }

  finish() {
    const began = performance.now();
    showMarkdown(this.place, this.text);
    this.#next = performance.now() + 4 * (performance.now() - began);
  }
}
