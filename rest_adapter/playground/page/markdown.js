// Markdown of the model, as elements that can do nothing: no scripts, no styles, no images, nothing that is fetched.
import DOMPurify from "./vendor/purify.mjs";
import { Marked } from "./vendor/marked.mjs";
import { html, useLayoutEffect, useRef } from "./view.js";

const SIGNS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (sign) => SIGNS[sign]);

const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  renderer: {
    // HTML and images stay what the model wrote.
    html: ({ raw }) => (/^<br\s*\/?>$/i.test(raw) ? "<br>" : escaped(raw)),
    image: ({ raw }) => escaped(raw),
  },
});
const ALLOWED = {
  ALLOWED_TAGS: (
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i li ol p pre s strong sub sup table tbody td th thead tr ul"
  ).split(" "),
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

// An answer that is JSON is shown as code.
const asCode = (text) => (/^\s*[[{]\s*["{[]/.test(text) ? "```json\n" + text + "\n```" : text);

export function Markdown({ text }) {
  const target = useRef(null);
  useLayoutEffect(() => {
    try {
      target.current.replaceChildren(DOMPurify.sanitize(marked.parse(asCode(text)), ALLOWED));
    } catch {
      target.current.textContent = text; // nested deeper than the parser can follow
    }
    for (const block of target.current.querySelectorAll("pre")) block.tabIndex = 0; // to scroll by keyboard
  }, [text]);
  return html`<div class="markdown" ref=${target}></div>`;
}
