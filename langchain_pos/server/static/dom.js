// Small things that the other files share.

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

export const $ = (id) => document.getElementById(id);

/** Text without control characters, as `plain_text.strip_control_characters` leaves it. */
export const clean = (text) => text.replace(CONTROLS, "");
export const seconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`;
export const count = (number, noun, plural = `${noun}s`) =>
  `${number} ${number === 1 ? noun : plural}`;

export function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = clean(text);
  return made;
}

/** A place for somebody's text: right-to-left text turns nothing but itself. */
export function prose(text = "", kind = "text") {
  const made = element("div", kind, text);
  made.dir = "auto";
  return made;
}

/** The element of a template of `index.html`, anew. */
export const fromTemplate = (id) => $(id).content.firstElementChild.cloneNode(true);

/** Let a keyboard scroll what is cut: a keyboard can scroll what has the focus. */
export function makeScrollable(places) {
  for (const place of places) {
    const cut = place.scrollHeight > place.clientHeight + 1 || place.scrollWidth > place.clientWidth + 1;
    if (cut) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  }
}
