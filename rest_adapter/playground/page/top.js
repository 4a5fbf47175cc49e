// The bar at the top, and the form of the key.
import { THEMES } from "./settings.js";
import { html, useState } from "./view.js";

const UNSENDABLE = /[^\x20-\x7e]/u; // no key has it: see `read_keys`
const SIGNS = { auto: "◐", light: "☀", dark: "☾" };

export function Bar({ models, model, settings, change, side, onNew, t }) {
  const nextTheme = THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length];
  return html`<header inert=${side.isOpen}>
    <button
      type="button"
      class="menu"
      ref=${side.menu}
      aria-label=${t.menu}
      aria-expanded=${side.isOpen}
      aria-controls="side"
      onClick=${side.open}
    >
      <span aria-hidden="true">☰</span>
    </button>
    <h1>${t.title}</h1>
    ${models.length > 0 &&
    html`<label class="model">
      <span>${t.model}</span>
      <select aria-label=${t.model} value=${model?.id} onChange=${(event) => change({ model: event.target.value })}>
        ${models.map(({ id }) => html`<option key=${id} value=${id} selected=${id === model?.id}>${id}</option>`)}
      </select>
    </label>`}
    <button type="button" class="new" onClick=${onNew} aria-label=${t.newChat} title=${t.newChat}>
      <span aria-hidden="true">+</span><span class="wide"> ${t.newChat}</span>
    </button>
    <button
      type="button"
      class="theme"
      aria-label=${t.theme[settings.theme]}
      title=${t.theme[settings.theme]}
      onClick=${() => change({ theme: nextTheme })}
    >
      <span aria-hidden="true">${SIGNS[settings.theme]}</span>
    </button>
    <button
      type="button"
      class="language"
      lang=${settings.language === "zh" ? "en" : "zh-CN"}
      onClick=${() => change({ language: settings.language === "zh" ? "en" : "zh" })}
    >
      ${t.language}
    </button>
  </header>`;
}

export function Tabs({ tab, onChange, t }) {
  return html`<nav class="tabs" aria-label=${t.tabs}>
    ${["chat", "decisions"].map(
      (name) =>
        html`<button type="button" key=${name} aria-pressed=${tab === name} onClick=${() => onChange(name)}>
          ${t[name]}
        </button>`,
    )}
  </nav>`;
}

export function KeyForm({ value, isRefused, onChange, t }) {
  const [text, setText] = useState(value);
  const [bad, setBad] = useState(""); // the character that cannot be in a key
  const onSubmit = (event) => {
    event.preventDefault();
    const key = text.trim();
    const found = key.match(UNSENDABLE)?.[0] ?? "";
    setBad(found);
    if (!found) onChange(key);
  };
  return html`<form class="key" onSubmit=${onSubmit}>
    ${isRefused && html`<p>${t.keyNeeded}</p>`}
    ${bad && html`<p role="alert"><strong>${t.badKey(bad)}</strong></p>`}
    <label class="field">
      ${t.key}
      <input
        type="password"
        name="key"
        autocomplete="off"
        spellcheck=${false}
        value=${text}
        onInput=${(event) => setText(event.target.value)}
      />
    </label>
    <button type="submit" class="primary">${t.useKey}</button>
  </form>`;
}
