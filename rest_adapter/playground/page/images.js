// Images as the page holds them: {id, name, type, blob, width, height}; width is 0 if the browser cannot show it.

const SENT_AS_THEY_ARE = new Set([
  "image/jpeg",
  "image/png",
  "image/webp",
  "image/gif",
  "image/bmp",
  "image/tiff",
]);
const addresses = new WeakMap();

export const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");

export function addressOf(image) {
  if (!addresses.has(image.blob)) addresses.set(image.blob, URL.createObjectURL(image.blob));
  return addresses.get(image.blob);
}

export async function elementOf(image) {
  const element = new Image();
  element.src = addressOf(image);
  await element.decode();
  return element;
}

// Formats that only the browser knows (AVIF, SVG, HEIC on some) become PNG.
async function toPng(image) {
  const element = await elementOf(image);
  return cut(element, 0, 0, element.naturalWidth, element.naturalHeight);
}

async function cut(element, x, y, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  canvas.getContext("2d").drawImage(element, x, y, width, height, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no image"))), "image/png"),
  );
}

// Throws if a file is no image.
export async function fromFile(file) {
  const image = { id: newId(), name: file.name || "image.png", type: file.type, blob: file };
  if (!SENT_AS_THEY_ARE.has(image.type)) {
    image.blob = await toPng(image);
    image.type = "image/png";
  }
  try {
    const element = await elementOf(image);
    image.width = element.naturalWidth;
    image.height = element.naturalHeight;
  } catch {
    image.width = image.height = 0; // the service may know better
  }
  return image;
}

export async function fromAddress(address, name) {
  const blob = await (await fetch(address)).blob();
  return fromFile(new File([blob], name, { type: blob.type }));
}

// The part of an image within a box, as an image of its own.
export async function crop(image, [left, top, right, bottom], name) {
  const element = await elementOf(image);
  const x = Math.max(0, left);
  const y = Math.max(0, top);
  const width = Math.min(image.width, right) - x;
  const height = Math.min(image.height, bottom) - y;
  const blob = await cut(element, x, y, Math.max(1, width), Math.max(1, height));
  return fromFile(new File([blob], name, { type: "image/png" }));
}

export function dataUri(image) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:${image.type};base64,${reader.result.split(",")[1] ?? ""}`);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(image.blob);
  });
}

// Tokens of an image: its sides become multiples of `pixel_step` within the budget of pixels, and each square of that
// side is a token (smart_resize of Qwen2-VL and later). null = unknown.
export function tokensOf(image, limits, maxPixels) {
  if (!limits?.pixel_step || !image.width || limits.min_pixels === limits.max_pixels) return null;
  const step = limits.pixel_step;
  const most = Math.max(step * step, Math.min(maxPixels || limits.max_pixels, limits.max_pixels));
  const least = Math.min(limits.min_pixels, most);
  const round = (value, by) => Math.max(1, by(value / step));
  let wide = round(image.width, Math.round);
  let high = round(image.height, Math.round);
  const pixels = image.width * image.height;
  if (wide * high * step * step > most) {
    const scale = Math.sqrt(pixels / most);
    wide = round(image.width / scale, Math.floor);
    high = round(image.height / scale, Math.floor);
  } else if (wide * high * step * step < least) {
    const scale = Math.sqrt(least / pixels);
    wide = round(image.width * scale, Math.ceil);
    high = round(image.height * scale, Math.ceil);
  }
  return wide * high;
}

export function sizeText(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
