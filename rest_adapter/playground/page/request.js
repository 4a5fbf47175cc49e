// The request of a conversation: its JSON, and the same request as programs.
import { dataUri } from "./images.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

// What is sent to ask a turn: it, and the earlier ones that were answered.
export const turnsUpTo = (turns, index) =>
  turns.slice(0, index + 1).filter((turn, each) => each === index || turn.answer?.text);

// Their images, in the order of `image_index`.
export const imagesOf = (turns) => turns.flatMap((turn) => turn.images);

function sampling(settings) {
  const found = {};
  for (const name of NUMBERS) {
    if (settings[name] !== "") found[name] = Number(settings[name]);
  }
  return found;
}

// `source` makes the URL of an image.
async function messagesOf(turns, settings, source) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const [index, turn] of turns.entries()) {
    const parts = await Promise.all(
      turn.images.map(async (image) => ({ type: "image_url", image_url: { url: await source(image) } })),
    );
    if (turn.text) parts.push({ type: "text", text: turn.text });
    messages.push({ role: "user", content: turn.images.length ? parts : turn.text });
    if (index < turns.length - 1) messages.push({ role: "assistant", content: turn.answer.text });
  }
  return messages;
}

export async function bodyOf(turns, settings, model, source = dataUri) {
  const body = {
    model: model?.id ?? settings.model,
    messages: await messagesOf(turns, settings, source),
    stream: true,
    stream_options: { include_usage: true },
    ...sampling(settings),
  };
  if (settings.boxes && model?.features?.includes("grounding")) body.grounding = true;
  if (settings.maxPixels) body.mm_processor_kwargs = { max_pixels: settings.maxPixels };
  return body;
}

export async function asCurl(turns, settings, model, hasKey) {
  const body = await bodyOf(turns, settings, model);
  const key = hasKey ? " -H \"authorization: Bearer $API_KEY\"" : "";
  const address = new URL("v1/chat/completions", document.baseURI);
  return (
    `curl -sN '${address}' -H 'content-type: application/json'${key} --data-binary @- <<'JSON'\n` +
    `${JSON.stringify(body)}\nJSON\n`
  );
}

// JSON as a Python expression.
function python(value, indent = "") {
  const inner = indent + "    ";
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (value instanceof Code) return value.text;
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => python(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  return items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}` : open + close;
}

class Code {
  constructor(text) {
    this.text = text;
  }
}

// Large images are read from files, which the page offers to save; small ones are within the program.
const EMBEDDED_BYTES = 50_000;

// The name of a file that any system takes as it is; images may be pasted, cut out or converted, and share a name.
function fileName(image, number) {
  const base = image.name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  return `image-${number}-${base}.${image.type.split("/")[1]}`;
}

// The images that the programs read from files: [{image, name}].
export const filesOf = (turns) =>
  imagesOf(turns)
    .map((image, index) => ({ image, name: fileName(image, index + 1) }))
    .filter(({ image }) => image.blob.size > EMBEDDED_BYTES);

async function pythonImages(turns) {
  const files = new Map(filesOf(turns).map(({ image, name }) => [image, name]));
  const lines = imagesOf(turns).map(async (image, index) => {
    const bytes = files.has(image)
      ? `pathlib.Path(${JSON.stringify(files.get(image))}).read_bytes()`
      : `base64.b64decode(${JSON.stringify((await dataUri(image)).split(",")[1])})`;
    return `image_${index + 1} = ${bytes}\n`;
  });
  return (await Promise.all(lines)).join("");
}

// The imports of the standard library that a program needs.
const importsOf = (program) =>
  ["base64", "os", "pathlib"].filter((name) => program.includes(`${name}.`)).map((name) => `import ${name}\n`).join("");

const DATA_URI =
  `def data_uri(image: bytes, media_type: str) -> str:\n` +
  `    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"\n\n\n`;

const SDK_FIELDS = new Set(["grounding", "mm_processor_kwargs"]);

export async function asOpenAi(turns, settings, model, hasKey) {
  const images = imagesOf(turns);
  const source = (image) => new Code(`data_uri(image_${images.indexOf(image) + 1}, ${JSON.stringify(image.type)})`);
  const body = await bodyOf(turns, settings, model, source);
  const extra = {};
  const options = [];
  for (const [name, value] of Object.entries(body)) {
    if (SDK_FIELDS.has(name)) extra[name] = value;
    else options.push(`    ${name}=${python(value, "    ")},\n`);
  }
  if (Object.keys(extra).length) options.push(`    extra_body=${python(extra, "    ")},\n`);
  const program =
    (images.length ? `\n${DATA_URI}` : "") +
    (await pythonImages(turns)) +
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", document.baseURI).href)}, ` +
    `api_key=${hasKey ? 'os.environ["API_KEY"]' : '"none"'})\n` +
    `stream = client.chat.completions.create(\n${options.join("")})\n` +
    `for chunk in stream:\n    for choice in chunk.choices:\n` +
    `        print(choice.delta.content or "", end="", flush=True)\n` +
    `        if boxes := (choice.model_extra or {}).get("grounding"):\n            print("", boxes, sep="\\n")\nprint()\n`;
  return `${importsOf(program)}\nfrom openai import OpenAI\n\n${program}`.trimStart();
}

export async function asGrpc(turns, settings, model, hasKey) {
  const images = imagesOf(turns);
  const lines = settings.system.trim() ? [`    system(${JSON.stringify(settings.system)}),\n`] : [];
  for (const [index, turn] of turns.entries()) {
    const parts = turn.images.map((each) => `image(image_${images.indexOf(each) + 1})`);
    if (turn.text) parts.push(JSON.stringify(turn.text));
    lines.push(`    user(${parts.join(", ")}),\n`);
    if (index < turns.length - 1) lines.push(`    assistant(${JSON.stringify(turn.answer.text)}),\n`);
  }
  const options = { model: model?.id ?? settings.model, ...sampling(settings) };
  if (settings.boxes && model?.features?.includes("grounding")) options.grounding = true;
  if (settings.maxPixels) options.max_pixels = settings.maxPixels;
  const given = Object.entries(options).map(([name, value]) => `, ${name}=${python(value)}`);
  const names = ["assistant", "image", "system", "user"].filter((name) => lines.some((line) => line.includes(`${name}(`)));
  const program =
    (await pythonImages(turns)) +
    `messages = [\n${lines.join("")}]\n` +
    `# The gRPC address of the service, which may be another than that of this page.\n` +
    `with Client("${location.hostname}:50051"${hasKey ? ', api_key=os.environ["API_KEY"]' : ""}) as client:\n` +
    `    stream = client.stream(messages${given.join("")})\n` +
    `    for text in stream:\n        print(text, end="", flush=True)\n` +
    `    print()\n    for found in stream.answer.groundings:\n        print(found.label, found.box)\n`;
  return `${importsOf(program)}\nfrom qwenvl import ${["Client", ...names].join(", ")}\n\n${program}`.trimStart();
}
