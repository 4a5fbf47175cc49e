// Decisions: one question about each image, answered by the probabilities of classes.
import { ApiFailure, decide } from "./api.js";
import { Pickers, Thumbnails } from "./composer.js";
import { addressOf, dataUri } from "./images.js";
import { Failure } from "./turn.js";
import { html, useState } from "./view.js";

const classesOf = (text) => [...new Set(text.split("\n").map((line) => line.trim()).filter(Boolean))];

// Without classes the question is one of yes or no.
function questionOf(instructions, classes) {
  if (!classes.length) return { type: "predicate", instructions };
  return { type: "choice", instructions, choices: classes.map((value) => ({ value })) };
}

async function bodyOf(image, instructions, classes, settings, model) {
  const content = [{ type: "input_image", image_url: await dataUri(image) }];
  const body = { model: model.id, input: [{ role: "user", content }], questions: [questionOf(instructions, classes)] };
  if (settings.maxPixels) body.mm_processor_kwargs = { max_pixels: settings.maxPixels };
  return body;
}

// The rows of an answer: [what, probability].
function rowsOf(answer, t) {
  if (answer.type === "predicate") return [[t.yes, answer.probability], [t.no, 1 - answer.probability]];
  return answer.probabilities.map(({ value, probability }) => [String(value), probability]);
}

function Bars({ answer, t }) {
  if (answer.type === "refusal") return html`<p class="note">${t.noDecision}</p>`;
  const rows = rowsOf(answer, t);
  const most = Math.max(...rows.map(([, probability]) => probability));
  return html`<ul class="bars">
    ${rows.map(
      ([what, probability]) =>
        html`<li key=${what} class=${probability === most ? "most" : ""}>
          <span class="what">${what}</span>
          <span class="bar" aria-hidden="true"><span style=${{ width: `${100 * probability}%` }}></span></span>
          <span class="share">${(100 * probability).toFixed(1)} %</span>
        </li>`,
    )}
  </ul>`;
}

export function Decisions({ draft, setDraft, onFiles, settings, model, secret, t }) {
  const [question, setQuestion] = useState("");
  const [lines, setLines] = useState("");
  const [results, setResults] = useState([]);
  const [isBusy, setBusy] = useState(false);
  const canAsk = !isBusy && question.trim() && draft.images.length && classesOf(lines).length !== 1;
  const run = async (event) => {
    event.preventDefault();
    if (!canAsk) return;
    setBusy(true);
    setResults([]);
    for (const image of draft.images) {
      const result = { image };
      try {
        const body = await bodyOf(image, question.trim(), classesOf(lines), settings, model);
        result.answer = (await decide(body, secret)).answers[0];
      } catch (error) {
        result.error = error instanceof ApiFailure ? error.plain() : { message: String(error), status: 0 };
      }
      setResults((old) => [...old, result]);
    }
    setBusy(false);
  };
  return html`<div class="thread" tabindex="0" role="region" aria-label=${t.decisions}>
    <form class="decide" onSubmit=${run}>
      <h2>${t.decisions}</h2>
      <p>${t.decisionsHow}</p>
      ${draft.notice && html`<p class="notice" role="alert">${draft.notice}</p>`}
      <${Thumbnails}
        ...${{ draft, setDraft, t }}
        limits=${model?.image_limits}
        maxPixels=${settings.maxPixels}
      />
      <div class="buttons"><${Pickers} onFiles=${onFiles} t=${t} /></div>
      <label class="field">
        ${t.question}
        <input type="text" name="question" value=${question} onInput=${(e) => setQuestion(e.target.value)} />
      </label>
      <label class="field">
        ${t.classes}
        <textarea rows="4" name="classes" value=${lines} onInput=${(e) => setLines(e.target.value)}></textarea>
      </label>
      <button type="submit" class="primary" disabled=${!canAsk}>${t.decide}</button>
    </form>
    <ul class="results" aria-live="polite" aria-busy=${isBusy}>
      ${results.map(
        ({ image, answer, error }) =>
          html`<li key=${image.id}>
            <img src=${addressOf(image)} alt=${image.name} />
            ${answer && html`<${Bars} answer=${answer} t=${t} />`}
            ${error && html`<${Failure} error=${error} t=${t} />`}
          </li>`,
      )}
    </ul>
  </div>`;
}
