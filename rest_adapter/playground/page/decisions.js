// Decisions: one question about each image, answered by the probabilities of classes.
import { ApiFailure, decide } from "./api.js";
import { Notices, Pickers, SendButton, Thumbnails } from "./composer.js";
import { addressOf, asSeen, dataUri } from "./images.js";
import { Failure } from "./turn.js";
import { html, useEffect, useRef, useState } from "./view.js";

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

// Asks about one image after the other until it is stopped.
function useDecisions(onEnd) {
  const [results, setResults] = useState([]);
  const [isBusy, setBusy] = useState(false);
  const controller = useRef(null);
  const stop = () => controller.current?.abort();
  const run = async (images, ask) => {
    const { signal } = (controller.current = new AbortController());
    setBusy(true);
    setResults([]);
    let status;
    for (const image of images) {
      const result = { image };
      try {
        result.answer = await ask(image, signal);
      } catch (error) {
        if (signal.aborted) result.isStopped = true;
        else result.error = error instanceof ApiFailure ? error.plain() : { message: String(error), status: 0 };
        status = result.error?.status;
      }
      setResults((old) => [...old, result]);
      if (signal.aborted) break;
    }
    setBusy(false);
    onEnd(status);
  };
  useEffect(() => stop, []);
  return { results, isBusy, run, stop };
}

function Results({ results, isBusy, limits, t }) {
  const isTransposed = limits?.exif_transposed ?? true;
  return html`<ul class="results" aria-live="polite" aria-busy=${isBusy}>
    ${results.map(
      ({ image, answer, error, isStopped }) =>
        html`<li key=${image.id}>
          <img src=${addressOf(asSeen(image, isTransposed))} alt=${image.name} />
          ${answer && html`<${Bars} answer=${answer} t=${t} />`}
          ${isStopped && html`<p class="note">${t.stopped}</p>`}
          ${error && html`<${Failure} error=${error} t=${t} />`}
        </li>`,
    )}
  </ul>`;
}

export function Decisions({ isHidden, draft, setDraft, onFiles, onEnd, settings, model, secret, t }) {
  const [question, setQuestion] = useState("");
  const [lines, setLines] = useState("");
  const { results, isBusy, run, stop } = useDecisions(onEnd);
  const classes = classesOf(lines);
  const missing =
    (!draft.images.length && t.needImage) || (!question.trim() && t.needQuestion) || (classes.length === 1 && t.needClass);
  useEffect(() => {
    const onKeyDown = (event) => event.key === "Escape" && !isHidden && stop();
    addEventListener("keydown", onKeyDown);
    return () => removeEventListener("keydown", onKeyDown);
  }, [isHidden]);
  const onSubmit = (event) => {
    event.preventDefault();
    if (isBusy || missing) return;
    run(draft.images, async (image, signal) => {
      const body = await bodyOf(image, question.trim(), classes, settings, model);
      return (await decide(body, secret, signal)).answers[0];
    });
  };
  const limits = model?.image_limits;
  return html`<div class="thread" hidden=${isHidden} tabindex="0" role="region" aria-label=${t.decisions}>
    <form class="decide" onSubmit=${onSubmit}>
      <h2>${t.decisions}</h2>
      <p>${t.decisionsHow}</p>
      <${Notices} ...${{ draft, limits, t }} count=${0} />
      <${Thumbnails} ...${{ draft, setDraft, limits, t }} maxPixels=${settings.maxPixels} />
      <div class="buttons"><${Pickers} onFiles=${onFiles} t=${t} /></div>
      <label class="field">
        ${t.question}
        <input type="text" name="question" value=${question} onInput=${(e) => setQuestion(e.target.value)} />
      </label>
      <label class="field">
        ${t.classes}
        <textarea rows="4" name="classes" value=${lines} onInput=${(e) => setLines(e.target.value)}></textarea>
      </label>
      <div class="buttons">
        <${SendButton} ...${{ isBusy, t }} onStop=${stop} label=${t.decide} disabled=${Boolean(missing)} why="missing" />
        <span id="missing" class="quiet">${!isBusy && missing}</span>
      </div>
    </form>
    <${Results} ...${{ results, isBusy, limits, t }} />
  </div>`;
}
