// Images as the page holds them: {id, name, type, blob, width, height, exif}. `width` and `height` are those of the
// image as browsers show it, 0 if this one cannot; `exif` is null or what a model sees that leaves an image as it lies.
import { exifOffset, withoutExif } from "./exif.js";

const SENT_AS_THEY_ARE = new Set([
  "image/jpeg",
  "image/png",
  "image/webp",
  "image/gif",
  "image/bmp",
  "image/tiff",
]);
const MAX_CANVAS_PIXELS = 2 ** 24; // some browsers draw no larger one
const DEFAULT_SHOWN_PIXELS = 50_000_000;
const addresses = new WeakMap();
const revoker = new FinalizationRegistry((address) => URL.revokeObjectURL(address));

export const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");

// The address lasts as long as the blob.
export function addressOf({ blob }) {
  if (!addresses.has(blob)) {
    const address = URL.createObjectURL(blob);
    addresses.set(blob, address);
    revoker.register(blob, address);
  }
  return addresses.get(blob);
}

// Its size is known without decoding it, which may take gigabytes.
function elementOf(image) {
  return new Promise((resolve, reject) => {
    const element = new Image();
    element.onload = () => (element.naturalWidth ? resolve(element) : reject(new Error("no size")));
    element.onerror = () => reject(new Error("no image"));
    element.src = addressOf(image);
  });
}

async function sizeOf(image) {
  const { naturalWidth: width, naturalHeight: height } = await elementOf(image);
  return { width, height };
}

// Whether the page shows an image: a larger one would be refused, and might end the page.
export const isShown = ({ width, height }, limits) =>
  width > 0 && width * height <= (limits?.max_decoded_pixels ?? DEFAULT_SHOWN_PIXELS);

// Formats that only the browser knows (AVIF, SVG, HEIC on some) become PNG.
async function toPng(image) {
  const element = await elementOf(image);
  return cut(element, 0, 0, element.naturalWidth, element.naturalHeight);
}

async function cut(element, x, y, width, height) {
  const scale = Math.min(1, Math.sqrt(MAX_CANVAS_PIXELS / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(width * scale));
  canvas.height = Math.max(1, Math.floor(height * scale));
  canvas.getContext("2d").drawImage(element, x, y, width, height, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no image"))), "image/png"),
  );
}

// Throws if a file is no image.
export async function fromFile(file) {
  const image = { id: newId(), name: file.name || "image.png", type: file.type, blob: file, exif: null };
  if (!SENT_AS_THEY_ARE.has(image.type)) {
    image.blob = await toPng(image);
    image.type = "image/png";
  }
  const offset = await exifOffset(image.blob);
  const plain = offset ? withoutExif(image.blob, offset) : null;
  // Not all browsers turn WebP as models do: nobody does without the data.
  if (plain && image.type === "image/webp") image.blob = plain;
  try {
    Object.assign(image, await sizeOf(image));
    if (plain && image.blob !== plain) image.exif = { offset, ...(await sizeOf({ blob: plain })) };
  } catch {
    image.width = image.height = 0; // the service may know better
  }
  return image;
}

export async function fromAddress(address, name) {
  const blob = await (await fetch(address)).blob();
  return fromFile(new File([blob], name, { type: blob.type }));
}

const unturned = new WeakMap();

// The image as a model sees it, which may leave a photograph as it lies.
export function asSeen(image, isTransposed) {
  if (isTransposed || !image.exif) return image;
  const { offset, width, height } = image.exif;
  if (!unturned.has(image.blob)) unturned.set(image.blob, withoutExif(image.blob, offset));
  return { ...image, blob: unturned.get(image.blob), width, height };
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
