// Texts that grow by pieces, shown as markdown; drawn once a frame, whatever the pace of the stream.

import { showMarkdown } from "./markdown.js";

const changed = new Set(); // what the next frame draws
let frame = 0;
let next = 0; // no frame draws before: the longer drawing takes, the more seldom it is done

export function redraw(thing) {
  changed.add(thing);
  frame ||= requestAnimationFrame(drawInTime);
}

function drawInTime() {
  if (performance.now() < next) frame = requestAnimationFrame(drawInTime);
  else drawAll();
}

export function drawAll() {
  cancelAnimationFrame(frame); // where it is not the frame that calls
  frame = 0;
  const began = performance.now();
  const things = [...changed];
  changed.clear();
  // Layout is read before anything is written, and once after: reading in between would cost a
  // layout for every card.
  const following = things.filter((thing) => thing.atEnd?.());
  for (const thing of things) thing.draw();
  for (const thing of following) thing.place.scrollTop = thing.place.scrollHeight;
  next = performance.now() + 3 * (performance.now() - began);
}

export class Growing {
  text = "";
  #whole = false;

  constructor(place) {
    this.place = place;
    place.classList.add("markdown");
  }

  add(piece) {
    this.text += piece;
    redraw(this);
  }

  /** All of it is there; what is drawn then does not change any more. */
  finish(text = this.text) {
    this.text = text;
    this.#whole = true;
    redraw(this);
  }

  atEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.place;
    return scrollTop + clientHeight >= scrollHeight - 4;
  }

  draw() {
    const text = outdented(this.text);
    showMarkdown(this.place, this.#whole ? text : closed(text));
  }
}

/** A text without the depth at which it stands in a list, which is its first line's. */
function outdented(text) {
  const depth = text.search(/[^ ]|$/);
  return depth ? text.replace(new RegExp(`^ {1,${depth}}`, "gm"), "") : text;
}

/** A text whose last line is not yet written: bold print that it has begun ends with it. */
function closed(text) {
  if (((text.match(/^ *(?:```|~~~)/gm) ?? []).length) % 2) return text; // code
  const line = text.slice(text.lastIndexOf("\n") + 1);
  const stem = line.replace(/\s*\*+$/, "");
  const mark = stem.split("**").length % 2 ? "" : "**";
  return text.slice(0, text.length - line.length) + stem + mark;
}
