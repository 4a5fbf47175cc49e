// The REST API of this page's own origin, below the address that the page was loaded from.

export class ApiFailure extends Error {
  constructor(status, error, retryAfter) {
    super(error.message);
    Object.assign(this, { status, param: error.param, code: error.code, retryAfter });
    this.requestId = error.request_id;
  }

  // What history keeps of it.
  plain() {
    const { message, status, param, code, retryAfter, requestId } = this;
    return { message, status, param, code, retryAfter, requestId };
  }
}

const unreachable = (error) =>
  new ApiFailure(0, { message: String(error?.message || error), code: "unreachable" });

async function call(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable(error);
  }
  if (response.ok) return response;
  const text = await response.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Not of the adapter: a proxy's page.
  }
  error ||= { message: `${response.status} ${response.statusText} ${text.slice(0, 300)}`.trim() };
  throw new ApiFailure(response.status, error, response.headers.get("retry-after"));
}

export async function listModels(key) {
  return (await (await call("v1/models", key)).json()).data;
}

const asJson = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

export async function decide(body, key, signal) {
  return (await call("v1/decisions", key, { ...asJson(body), signal })).json();
}

// Yields the chunks of a streamed chat completion; an error in the stream is thrown.
export async function* streamChat(body, key, signal) {
  const response = await call("v1/chat/completions", key, { ...asJson(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable(error);
    }
    if (read.done) throw unreachable("The stream ended early.");
    const lines = (pending + read.value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // a comment, or the end of an event
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiFailure(200, chunk.error, null);
      yield chunk;
    }
  }
}
