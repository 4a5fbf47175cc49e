// Where a question is written: its images and its text.
import { addressOf, asSeen, isShown, sizeText, tokensOf } from "./images.js";
import { imagesOf } from "./request.js";
import { html, useEffect, useRef } from "./view.js";

export function Thumbnail({ image: given, limits, maxPixels, onRemove, t }) {
  const image = asSeen(given, limits?.exif_transposed ?? true);
  const tokens = tokensOf(image, limits, maxPixels);
  return html`<li class="thumbnail">
    ${isShown(image, limits) ? html`<img src=${addressOf(image)} alt="" />` : html`<span class="no-image" aria-hidden="true">?</span>`}
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
  const remove = (image) =>
    setDraft((old) => ({ ...old, images: old.images.filter((each) => each !== image), bad: [], focus: old.focus + 1 }));
  return html`<ul class="thumbnails">
    ${draft.images.map(
      (image) =>
        html`<${Thumbnail} key=${image.id} ...${{ image, limits, maxPixels, t }} onRemove=${() => remove(image)} />`,
    )}
  </ul>`;
}

// What is wrong with the images. `count` = how many one request would have; 0 = each is asked about alone.
export function Notices({ draft, limits, count, t }) {
  const most = limits?.max_decoded_pixels;
  const large = draft.images.filter(({ width, height }) => most && width * height > most);
  const notices = [
    draft.bad.length && t.notAnImage(draft.bad.join(", ")),
    limits?.max_images && count > limits.max_images && t.tooMany(limits.max_images),
    large.length && t.tooLarge(large.map(({ name }) => name).join(", "), most),
  ];
  return notices.filter(Boolean).map((text) => html`<p key=${text} class="notice" role="alert">${text}</p>`);
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

// Sends the form, or stops what runs. It stays one button, so that the focus stays on it.
export function SendButton({ label, disabled, why, isBusy, onStop, t }) {
  const onClick = (event) => {
    if (!isBusy) return;
    event.preventDefault(); // it may send again before this click has ended, which would then send
    onStop();
  };
  return html`<button type="submit" class="primary" disabled=${!isBusy && disabled} aria-describedby=${why} onClick=${onClick}>
    ${isBusy ? t.stop : label}
  </button>`;
}

export function Composer({ draft, setDraft, turns, onFiles, onSend, onStop, onCancel, isBusy, limits, maxPixels, t }) {
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
  const earlier = turns.slice(0, draft.turn ?? turns.length).filter((turn) => turn.answer?.text);
  return html`<form
    class="composer"
    onSubmit=${(event) => {
      event.preventDefault();
      if (!isBusy) onSend();
    }}
  >
    ${draft.turn !== null &&
    html`<p class="note">${t.editing(turns.length - 1 - draft.turn)} <button type="button" onClick=${onCancel}>${t.cancel}</button></p>`}
    <${Notices} ...${{ draft, limits, t }} count=${imagesOf(earlier).length + draft.images.length} />
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
      <${SendButton}
        ...${{ isBusy, onStop, t }}
        label=${t.send}
        disabled=${!draft.text.trim() && !draft.images.length}
      />
    </div>
  </form>`;
}
