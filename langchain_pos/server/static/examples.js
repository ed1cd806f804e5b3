// Questions to begin with, each of another kind.

import { $, element } from "./dom.js";

const ANY_MODEL = [
  ["A list", "Ten ways to save water", "Give me ten ways to save water at home."],
  ["A comparison", "Three languages", "Compare Python, Go and Rust for a small web service."],
  ["A checklist", "Moving to another city", "Make a checklist for moving to another city, by category."],
  ["A decision", "An electric car", "What should I weigh up before I buy an electric car?"],
  ["A plan", "A weekend in three cities", "Suggest what to do on a weekend in Lisbon, in Prague and in Oslo."],
  ["No parts", "A sum", "What is 17 + 25?"],
];

const DEMONSTRATION = [
  ["Students", "Who has this GPA?", null], // the demo question
  [
    "Items",
    "What fits a budget?",
    "Price list:\nThe Copper Kettle costs $24.50.\nThe Oak Ladder costs $57.90.\nThe Wool Blanket costs $31.20.\n" +
      "The Paper Lantern costs $8.75.\nThe Brass Compass costs $19.99.\nThe Canvas Tent costs $88.00.\n\n" +
      "Question: Which items cost less than $30.00?",
  ],
  [
    "Documents",
    "What does each name?",
    "Documents:\n\nDocument 1: This is about Velmora. The door is red. A heron lives there.\n" +
      "Document 2: Tarnby is a quiet place. The door is green. A fox lives there.\n" +
      "Document 3: This is about Osk. The door is white. A badger lives there.\n" +
      "Document 4: Lunvik is a windy place. The door is blue. An owl lives there.\n\n" +
      "Question: Which colour does each document name?",
  ],
  [
    "Numbers",
    "Which can be divided?",
    "Here are 8 numbers:\n45, 82, 130, 77, 60, 215, 94, 308.\n\nQuestion: Which of the numbers are divisible by 5?",
  ],
];

/** Show the examples of a model; `choose` is called with the question. */
export function showExamples(isDemonstration, choose) {
  const cards = (isDemonstration ? DEMONSTRATION : ANY_MODEL).map(([kind, title, question]) => {
    const text = question ?? $("demo-question").content.textContent;
    const card = element("button", "example");
    card.type = "button";
    const asked = element("span", "muted", text.trim().split("\n").at(-1)); // after the records
    card.append(element("span", "kind", kind), element("b", "", title), asked);
    card.addEventListener("click", () => choose(text));
    const place = element("li");
    place.append(card);
    return place;
  });
  $("examples").replaceChildren(...cards);
}
