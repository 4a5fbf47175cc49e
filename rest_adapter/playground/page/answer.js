// Asks one turn and tells what has arrived.
import { ApiFailure, streamChat } from "./api.js";
import { bodyOf, imagesOf } from "./request.js";

const SHOW_MS = 100;

export const emptyAnswer = () => ({
  text: "",
  reasoning: "",
  images: [], // those that were sent, in the order of `image_index`
  isTransposed: true, // whether the model sees them as their EXIF data say
  boxes: [],
  usage: null,
  finish: null,
  ttft: null, // seconds until the first output
  seconds: null, // from the first output to the last
  isStopped: false,
  error: null,
});

// Calls `onChange(answer)` soon after something has arrived; returns the whole answer and never throws.
export async function ask(turns, settings, model, key, signal, onChange) {
  const answer = { ...emptyAnswer(), images: imagesOf(turns) };
  answer.isTransposed = model?.image_limits?.exif_transposed ?? true;
  const begin = performance.now();
  let first = null;
  let timer = null; // to show an answer takes longer the longer it is: not for every piece
  const showSoon = () => {
    timer ??= setTimeout(() => {
      timer = null;
      onChange({ ...answer });
    }, SHOW_MS);
  };
  try {
    const body = await bodyOf(turns, settings, model);
    for await (const chunk of streamChat(body, key, signal)) {
      if (chunk.usage) answer.usage = chunk.usage;
      for (const choice of chunk.choices ?? []) {
        const { content, reasoning_content: reasoning } = choice.delta ?? {};
        answer.text += content ?? "";
        answer.reasoning += reasoning ?? "";
        if (content || reasoning) {
          first ??= performance.now();
          answer.ttft = (first - begin) / 1000;
          answer.seconds = (performance.now() - first) / 1000;
        }
        if (choice.finish_reason) answer.finish = choice.finish_reason;
        if (choice.grounding) answer.boxes = choice.grounding;
      }
      showSoon();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.isStopped = true;
    else if (error instanceof ApiFailure) answer.error = error.plain();
    else answer.error = { message: String(error), status: 0 };
  }
  clearTimeout(timer);
  return answer;
}
