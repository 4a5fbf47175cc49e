// Beside the conversation: history and settings.
import { html, useEffect, useRef } from "./view.js";

const NUMBERS = [
  ["temperature", 0, 2, 0.1],
  ["top_p", 0, 1, 0.05],
  ["max_tokens", 1, 1000000, 1],
  ["seed", 0, 4294967295, 1],
];
const STEPS = 20;

// The slider is logarithmic; its right end is the model's own maximum.
function PixelBudget({ limits, value, onChange, t }) {
  if (!limits?.pixel_step || limits.min_pixels >= limits.max_pixels) return null;
  const least = Math.max(limits.min_pixels, limits.pixel_step ** 2);
  const ratio = limits.max_pixels / least;
  const pixels = value ? Math.min(value, limits.max_pixels) : limits.max_pixels;
  const position = Math.round((STEPS * Math.log(pixels / least)) / Math.log(ratio));
  const chosen = (at) => (at >= STEPS ? 0 : Math.round(least * ratio ** (at / STEPS)));
  const tokens = Math.floor(pixels / limits.pixel_step ** 2);
  return html`<label class="field">
    ${t.maxPixels}
    <input
      type="range"
      min="0"
      max=${STEPS}
      value=${position}
      aria-valuetext=${t.pixels(pixels, tokens)}
      onInput=${(event) => onChange(chosen(Number(event.target.value)))}
    />
    <small>${t.pixels(pixels.toLocaleString(), tokens)}</small>
  </label>`;
}

function Settings({ settings, change, model, t }) {
  const hasBoxes = model?.features?.includes("grounding");
  return html`<section>
    <h2>${t.settings}</h2>
    ${NUMBERS.map(
      ([name, least, most, step]) =>
        html`<label class="field" key=${name}>
          ${t[name]}
          <input
            type="number"
            name=${name}
            min=${least}
            max=${most}
            step=${step}
            placeholder=${t.byDefault}
            value=${settings[name]}
            onInput=${(event) => change({ [name]: event.target.value })}
          />
        </label>`,
    )}
    <${PixelBudget}
      limits=${model?.image_limits}
      value=${settings.maxPixels}
      onChange=${(maxPixels) => change({ maxPixels })}
      t=${t}
    />
    <label class="field">
      ${t.system}
      <textarea rows="2" value=${settings.system} onInput=${(e) => change({ system: e.target.value })}></textarea>
    </label>
    <label class="check">
      <input
        type="checkbox"
        checked=${settings.boxes && hasBoxes}
        disabled=${!hasBoxes}
        onChange=${(event) => change({ boxes: event.target.checked })}
      />
      ${t.askBoxes}
    </label>
    ${model && !hasBoxes && html`<small>${t.noBoxes}</small>`}
  </section>`;
}

function History({ history, current, problem, actions, t }) {
  return html`<nav aria-label=${t.history}>
    <h2>${t.history}</h2>
    ${problem && html`<p class="notice" role="alert">${t.notKept[problem]}</p>`}
    ${!problem && history.length === 0 && html`<small>${t.noHistory}</small>`}
    <ul class="history">
      ${history.map(
        (each) =>
          html`<li key=${each.id}>
            <button
              type="button"
              class="chosen"
              aria-current=${each.id === current ? "true" : undefined}
              onClick=${() => actions.open(each)}
            >
              ${each.title}
            </button>
            <button
              type="button"
              class="remove"
              aria-label=${t.deleteChat(each.title)}
              onClick=${() => actions.remove(each.id)}
            >
              ×
            </button>
          </li>`,
      )}
    </ul>
    ${history.length > 1 && html`<button type="button" onClick=${actions.removeAll}>${t.deleteAll}</button>`}
  </nav>`;
}

export function Side({ isOpen, onClose, history, current, problem, settings, change, model, actions, children, t }) {
  const close = useRef(null);
  useEffect(() => {
    if (isOpen) close.current.focus();
  }, [isOpen]);
  return html`<aside id="side" class=${isOpen ? "open" : ""} aria-label=${t.menu}>
    <button type="button" class="close" ref=${close} onClick=${onClose}>${t.close}</button>
    <${History} ...${{ history, current, problem, actions, t }} />
    <${Settings} ...${{ settings, change, model, t }} />
    ${children}
  </aside>`;
}
