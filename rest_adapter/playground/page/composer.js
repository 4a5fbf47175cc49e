// Where a question is written: its images and its text.
import { addressOf, sizeText, tokensOf } from "./images.js";
import { html, useEffect, useRef } from "./view.js";

export function Thumbnail({ image, limits, maxPixels, onRemove, t }) {
  const tokens = tokensOf(image, limits, maxPixels);
  return html`<li class="thumbnail">
    ${image.width ? html`<img src=${addressOf(image)} alt="" />` : html`<span class="no-image" aria-hidden="true">?</span>`}
    <span class="about">
      <span class="name" title=${image.name}>${image.name}</span>
      <span>${t.imageSize(image)} · ${sizeText(image.blob.size)}</span>
      ${tokens !== null && html`<span class="tokens">${t.tokens(tokens)}</span>`}
    </span>
    ${onRemove &&
    html`<button type="button" class="remove" aria-label=${t.remove(image.name)} onClick=${onRemove}>×</button>`}
  </li>`;
}

export function Thumbnails({ draft, setDraft, limits, maxPixels, t }) {
  if (!draft.images.length) return null;
  const remove = (image) => setDraft((old) => ({ ...old, images: old.images.filter((each) => each !== image) }));
  return html`<ul class="thumbnails">
    ${draft.images.map(
      (image) =>
        html`<${Thumbnail} key=${image.id} ...${{ image, limits, maxPixels, t }} onRemove=${() => remove(image)} />`,
    )}
  </ul>`;
}

export function Pickers({ onFiles, t }) {
  const files = useRef(null);
  const camera = useRef(null);
  const chosen = (event) => {
    onFiles([...event.target.files]);
    event.target.value = "";
  };
  return html`<input ref=${files} type="file" accept="image/*" multiple hidden onChange=${chosen} />
    <input ref=${camera} type="file" accept="image/*" capture="environment" hidden onChange=${chosen} />
    <button type="button" onClick=${() => files.current.click()}>${t.addImages}</button>
    <button type="button" class="camera" onClick=${() => camera.current.click()}>${t.camera}</button>`;
}

export function Composer({ draft, setDraft, onFiles, onSend, onStop, onCancel, isBusy, limits, maxPixels, t }) {
  const text = useRef(null);
  useEffect(() => {
    // On a phone that would open the keyboard over the page.
    if (matchMedia("(pointer: fine)").matches) text.current.focus();
  }, [draft.focus]);
  const onKeyDown = (event) => {
    // While Chinese is being composed, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!isBusy) onSend();
  };
  return html`<form
    class="composer"
    onSubmit=${(event) => {
      event.preventDefault();
      if (!isBusy) onSend();
    }}
  >
    ${draft.turn !== null &&
    html`<p class="note">${t.editing} <button type="button" onClick=${onCancel}>${t.cancel}</button></p>`}
    ${draft.notice && html`<p class="notice" role="alert">${draft.notice}</p>`}
    <${Thumbnails} ...${{ draft, setDraft, limits, maxPixels, t }} />
    <textarea
      ref=${text}
      rows="2"
      aria-label=${t.question}
      aria-describedby="send-keys"
      placeholder=${t.placeholder}
      value=${draft.text}
      onInput=${(event) => setDraft((d) => ({ ...d, text: event.target.value }))}
      onKeyDown=${onKeyDown}
    ></textarea>
    <div class="composer-bar">
      <${Pickers} onFiles=${onFiles} t=${t} />
      <span id="send-keys" class="keys">${t.sendKeys}</span>
      ${isBusy
        ? html`<button type="button" class="primary" onClick=${onStop}>${t.stop}</button>`
        : html`<button type="submit" class="primary" disabled=${!draft.text.trim() && !draft.images.length}>
            ${t.send}
          </button>`}
    </div>
  </form>`;
}
