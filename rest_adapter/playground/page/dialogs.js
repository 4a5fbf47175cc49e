// Dialogs: a request as a program, and a part of an image.
import { CopyButton } from "./clipboard.js";
import { addressOf } from "./images.js";
import { asCurl, asGrpc, asOpenAi, filesOf } from "./request.js";
import { html, useEffect, useRef, useState } from "./view.js";

function Dialog({ title, onClose, children, t }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} aria-label=${title} onClose=${onClose}>
    <div class="dialog-bar">
      <h2>${title}</h2>
      <button type="button" onClick=${() => dialog.current.close()}>${t.close}</button>
    </div>
    ${children}
  </dialog>`;
}

const FORMS = [
  ["curl", asCurl],
  ["openai (Python)", asOpenAi],
  ["gRPC (Python)", asGrpc],
];

export function CodeDialog({ turns, settings, model, hasKey, onClose, t }) {
  const [form, setForm] = useState(0);
  const [code, setCode] = useState("");
  const shown = useRef(null);
  useEffect(() => {
    let isOld = false;
    FORMS[form][1](turns, settings, model, hasKey).then((text) => isOld || setCode(text));
    return () => {
      isOld = true;
    };
  }, [form]);
  const files = FORMS[form][1] === asCurl ? [] : filesOf(turns);
  return html`<${Dialog} title=${t.codeTitle} onClose=${onClose} t=${t}>
    <div class="buttons">
      ${FORMS.map(
        ([name], index) =>
          html`<button type="button" key=${name} aria-pressed=${index === form} onClick=${() => setForm(index)}>
            ${name}
          </button>`,
      )}
      <${CopyButton} class="primary" text=${code} shown=${() => shown.current} label=${t.copy} t=${t} />
    </div>
    ${files.length > 0 &&
    html`<p class="files">
      ${t.saveFiles}
      ${files.map(({ image, name }) => html`<a class="button" href=${addressOf(image)} download=${name}>${name}</a>`)}
    </p>`}
    <pre tabindex="0" ref=${shown}>${code}</pre>
  <//>`;
}

export function CropDialog({ crop: { label, image }, onAsk, onClose, t }) {
  return html`<${Dialog} title=${`${t.crop}: ${label || "?"}`} onClose=${onClose} t=${t}>
    <img class="crop" src=${addressOf(image)} alt=${label} />
    <p>${t.imageSize(image)}</p>
    <div class="buttons">
      <button type="button" class="primary" onClick=${onAsk}>${t.askCrop}</button>
      <a class="button" href=${addressOf(image)} download=${image.name}>${t.download}</a>
    </div>
  <//>`;
}
