// Where an image has its EXIF data, which tells browsers to turn it.

const NAME_BYTES = 4;
const OTHER_NAME = "voId"; // one that all readers skip, in PNG by its small first letter
const ascii = (view, at, length) => String.fromCharCode(...new Uint8Array(view.buffer, at, length));

// Segments: FF, a marker, the length with its own two bytes.
function inJpeg(view) {
  for (let at = 2; at + 10 <= view.byteLength && view.getUint8(at) === 0xff; ) {
    const marker = view.getUint8(at + 1);
    if (marker === 0xda) break; // the pixels
    if (marker === 0xe1 && ascii(view, at + 4, 6) === "Exif\0\0") return at + 4;
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return 0;
}

// Chunks: length, name, content, checksum.
function inPng(view) {
  for (let at = 8; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    if (ascii(view, at + 4, 4) === "eXIf") return at + 4;
  }
  return 0;
}

// Chunks: name, length, content of an even size.
function inWebp(view) {
  for (let at = 12; at + 8 <= view.byteLength; ) {
    if (ascii(view, at, 4) === "EXIF") return at;
    const size = view.getUint32(at + 4, true);
    at += 8 + size + (size % 2);
  }
  return 0;
}

// The first bytes tell, as they do to browsers: a name may lie.
const FORMATS = { "\xff\xd8": inJpeg, "\x89P": inPng, RI: inWebp };

// The place of the name before the data; 0 = there is none.
export async function exifOffset(blob) {
  const view = new DataView(await blob.arrayBuffer());
  return FORMATS[ascii(view, 0, 2)]?.(view) ?? 0;
}

export const withoutExif = (blob, offset) =>
  new Blob([blob.slice(0, offset), OTHER_NAME, blob.slice(offset + NAME_BYTES)], { type: blob.type });
