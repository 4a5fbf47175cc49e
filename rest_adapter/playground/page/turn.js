// One turn: the question with its images, and the answer with boxes, usage or error.
import { Boxes } from "./boxes.js";
import { CopyButton } from "./clipboard.js";
import { Thumbnail } from "./composer.js";
import { Markdown } from "./markdown.js";
import { html, useRef } from "./view.js";

export function Failure({ error, onRetry, isBusy, t }) {
  const details = [
    error.status ? `HTTP ${error.status}` : "",
    error.code,
    error.param && `${t.field} ${error.param}`,
    error.requestId && `${t.requestId} ${error.requestId}`,
    error.retryAfter && t.retryAfter(error.retryAfter),
  ].filter(Boolean);
  const hint = t.hints[error.code];
  return html`<div class="failure" role="alert">
    <p><strong>${t.failed}.</strong> ${error.message}</p>
    ${hint && html`<p>${hint}</p>`}
    <p class="details">${details.join(" · ")}</p>
    ${onRetry && html`<button type="button" disabled=${isBusy} onClick=${onRetry}>${t.again}</button>`}
  </div>`;
}

function usageOf(answer) {
  const { usage, ttft, seconds } = answer;
  const details = usage.prompt_tokens_details ?? {};
  const after = usage.completion_tokens - 1;
  return {
    prompt: usage.prompt_tokens,
    image: details.image_tokens ?? 0,
    cached: details.cached_tokens ?? 0,
    output: usage.completion_tokens,
    ttft: ttft === null ? null : Math.round(ttft * 1000),
    rate: after > 0 && seconds > 0 ? (after / seconds).toFixed(1) : null,
  };
}

function Answer({ answer, isRunning, isBusy, actions, t }) {
  const article = useRef(null);
  const shown = () => article.current.querySelector(".markdown");
  return html`<article class="answer" ref=${article} aria-label=${t.answer} aria-busy=${isRunning}>
    ${answer.boxes.length > 0 && html`<${Boxes} answer=${answer} onCrop=${actions.crop} t=${t} />`}
    ${answer.reasoning &&
    html`<details class="reasoning"><summary>${t.reasoning}</summary><p class="text">${answer.reasoning}</p></details>`}
    ${answer.text && html`<${Markdown} text=${answer.text} />`}
    ${isRunning && !answer.text && html`<p class="waiting">${t.waiting}</p>`}
    ${answer.isStopped && html`<p class="note">${t.stopped}</p>`}
    ${answer.finish === "length" && html`<p class="note">${t.lengthEnd}</p>`}
    ${answer.error && html`<${Failure} error=${answer.error} onRetry=${actions.again} isBusy=${isBusy} t=${t} />`}
    ${!isRunning &&
    html`<div class="answer-bar">
      ${answer.usage &&
      html`<ul class="usage">
        ${t.usage(usageOf(answer)).filter(Boolean).map((text) => html`<li key=${text}>${text}</li>`)}
      </ul>`}
      <span class="buttons">
        ${!answer.error &&
        html`<button type="button" disabled=${isBusy} onClick=${actions.again}>${t.again}</button>`}
        <button type="button" onClick=${actions.code}>${t.copyAs}</button>
        ${answer.text && html`<${CopyButton} text=${answer.text} shown=${shown} label=${t.copyText} t=${t} />`}
      </span>
    </div>`}
  </article>`;
}

export function Turn({ turn, isRunning, isBusy, limits, actions, t }) {
  return html`<section class="turn">
    <article class="question" aria-label=${t.you}>
      ${turn.images.length > 0 &&
      html`<ul class="thumbnails">
        ${turn.images.map((image) => html`<${Thumbnail} key=${image.id} image=${image} limits=${limits} maxPixels=${turn.maxPixels} t=${t} />`)}
      </ul>`}
      ${turn.text && html`<p class="text">${turn.text}</p>`}
      <button type="button" disabled=${isBusy} onClick=${actions.edit}>${t.edit}</button>
    </article>
    ${turn.answer && html`<${Answer} answer=${turn.answer} ...${{ isRunning, isBusy, actions, t }} />`}
  </section>`;
}
