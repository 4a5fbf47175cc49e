// Copies text: only pages of https or of this machine may write to the clipboard by its own interface.
import { html, useState } from "./view.js";

// `shown` is the element with the text, which is selected if nothing else works; tells whether the text was copied.
export async function copyText(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(shown);
  }
  const onCopy = (event) => {
    event.preventDefault();
    event.clipboardData.setData("text/plain", text);
  };
  document.addEventListener("copy", onCopy);
  const isCopied = document.execCommand("copy");
  document.removeEventListener("copy", onCopy);
  if (isCopied) getSelection().removeAllRanges();
  return isCopied;
}

export function CopyButton({ text, shown, label, t, ...rest }) {
  const [copied, setCopied] = useState(null); // the text that was
  const copy = async () => setCopied((await copyText(text, shown())) ? text : null);
  return html`<button type="button" ...${rest} onClick=${copy}>${copied === text ? t.copied : label}</button>`;
}
