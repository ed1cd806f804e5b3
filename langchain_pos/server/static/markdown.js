// Markdown as elements. marked (vendor/) reads it; what it finds is built here, element by element.
//
// No string ever becomes markup, so there is nothing to sanitize: HTML that a model writes is shown
// as the text it is, an image as a link to it, and a link leads to the web or to nowhere.

import { clean, element } from "./dom.js";
import { lexer } from "./vendor/marked.js";

const LINKS = new Set(["http:", "https:", "mailto:"]);
const INLINE = { strong: "strong", em: "em", del: "del" };

/** Show `text` in `place`; of what stands there already, only what has changed is replaced. */
export function showMarkdown(place, text) {
  const shown = document.createDocumentFragment();
  try {
    addBlocks(lexer(clean(text), { gfm: true }), shown);
  } catch { // thousands of quotes in each other, say
    shown.replaceChildren(element("p", "", text));
  }
  let same = 0;
  const [old, made] = [place.childNodes, [...shown.childNodes]];
  while (same < made.length && old[same]?.isEqualNode(made[same])) same += 1;
  while (place.childNodes.length > same) place.lastChild.remove();
  place.append(...made.slice(same));
}

function addBlocks(tokens, into) {
  for (const token of tokens) {
    switch (token.type) {
      case "space":
      case "def": // of a link; used where it is named
        break;
      case "heading": // below the page's own two levels
        addInline(token.tokens, into.appendChild(element(`h${Math.min(token.depth + 2, 6)}`)));
        break;
      case "paragraph":
        addInline(token.tokens, into.appendChild(element("p")));
        break;
      case "text": // of an item of a tight list
        addInline(token.tokens ?? [token], into);
        break;
      case "code":
        into.appendChild(element("pre")).append(element("code", "", token.text));
        break;
      case "blockquote":
        addBlocks(token.tokens, into.appendChild(element("blockquote")));
        break;
      case "hr":
        into.append(element("hr"));
        break;
      case "list":
        addList(token, into);
        break;
      case "table":
        addTable(token, into);
        break;
      default:
        addInline([token], into);
    }
  }
}

function addList({ ordered, start, items }, into) {
  const list = into.appendChild(element(ordered ? "ol" : "ul"));
  if (ordered && start !== 1) list.start = start;
  for (const item of items) addBlocks(item.tokens, list.appendChild(element("li")));
}

function addTable({ header, rows }, into) {
  const table = into.appendChild(element("div", "table")).appendChild(element("table"));
  const addRow = (cells, tag, part) => {
    const row = part.appendChild(element("tr"));
    for (const cell of cells) addInline(cell.tokens, row.appendChild(element(tag)));
  };
  addRow(header, "th", table.appendChild(element("thead")));
  const body = table.appendChild(element("tbody"));
  for (const row of rows) addRow(row, "td", body);
}

function addInline(tokens, into) {
  for (const token of tokens) {
    if (token.type in INLINE) {
      addInline(token.tokens, into.appendChild(element(INLINE[token.type])));
    } else if (token.type === "codespan") {
      into.append(element("code", "", token.text));
    } else if (token.type === "br") {
      into.append(element("br"));
    } else if (token.type === "checkbox") {
      into.append(token.checked ? "☑ " : "☐ ");
    } else if (token.type === "link" || token.type === "image") {
      const { tokens: inner = [], text, href } = token;
      const place = into.appendChild(link(href));
      if (token.type === "link") addInline(inner, place);
      else place.append(text || href);
    } else if (token.type === "text" && token.tokens) {
      addInline(token.tokens, into);
    } else { // "html" as well, and whatever a later marked may know
      into.append(token.type === "text" || token.type === "escape" ? token.text : token.raw);
    }
  }
}

function link(href) {
  const target = URL.canParse(href) ? new URL(href) : null;
  if (!target || !LINKS.has(target.protocol)) return element("span");
  const made = element("a");
  Object.assign(made, { href: target.href, title: target.href, target: "_blank" });
  made.rel = "noopener noreferrer nofollow";
  return made;
}
