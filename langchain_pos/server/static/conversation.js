// The turns so far: what was asked, what was answered, and what can be done with an answer.

import { $, clean, element, fromTemplate, prose } from "./dom.js";

/** A question with its answer. Only whole answers are read back to the model. */
export class Turn {
  /**
   * @param {object} body of the request, without the model's name
   * @param {Answer} answer
   */
  constructor(body, answer) {
    [this.body, this.answer] = [body, answer];
    this.question = body.messages.at(-1).content;
    this.place = fromTemplate("turn-template");
    this.place.querySelector(".question").append(prose(this.question));
    this.place.querySelector(".question").after(answer.place);
    this.actions = this.place.querySelector(".actions");
    $("conversation").append(this.place);
  }

  get whole() {
    return this.answer.result !== null;
  }

  get messages() {
    const answer = { role: "assistant", content: this.answer.text };
    return [{ role: "user", content: this.question }, answer];
  }

  /** Show what can be done with it. */
  offer(race) {
    this.actions.hidden = false;
    const button = (name) => this.actions.querySelector(`.${name}`);
    button("copy-text").addEventListener("click", () => copy(clean(this.answer.text)));
    const json = () => copy(JSON.stringify(this.answer.result, null, 2));
    button("copy-json").addEventListener("click", json);
    button("race").hidden = this.answer.result.mode === "sequential";
    button("race").addEventListener("click", race);
  }

  get markdown() {
    const paper = this.answer.result.blocks.filter((block) => block.plan.form !== "native");
    const branches = paper.flatMap((block) => block.branches).map(({ title, text }) => `- **${title}**: ${text}`);
    const quoted = this.question.split("\n").map((line) => `> ${line}`).join("\n");
    return [quoted, branches.join("\n"), this.answer.text].filter(Boolean).join("\n\n");
  }
}

async function copy(text) {
  // Browsers have it for pages of this machine, and of others over https.
  const copied = navigator.clipboard?.writeText(text) ?? Promise.reject(new Error("no https"));
  await copied.then(
    () => ($("status").textContent = "Copied"),
    (error) => ($("error").textContent = `nothing was copied (${error.message}); select the text`),
  );
}

/** Save the whole answers as a markdown file. */
export function save(turns) {
  const text = clean(turns.map((turn) => turn.markdown).join("\n\n---\n\n"));
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/markdown" }));
  link.download = "conversation.md";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
