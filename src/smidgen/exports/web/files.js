"use strict";
/* Image files, decoded by the browser; within the bounds that `smidgen predict` keeps. */

const MOST_BYTES = 64 * 2 ** 20;
const MOST_PIXELS = { PNG: 36e6, JPEG: 50e6 }; // other formats as PNG
const MOST_SIDE = 20000;

/** Formats that are read, each with a function from a file's bytes to its size; null: another format. */
const FORMATS = { PNG: pngSize, JPEG: jpegSize };

function nameOf(file) {
  return file.name || "what was pasted";
}

/**
 * Decode an image file; its size is looked at first.
 * @param {File} file
 * @returns {Promise<{bitmap: ImageBitmap, kind: string, bytes: Uint8Array}>} upright, as its EXIF data say; a key of
 *   FORMATS; the whole file.
 * @throws {Error} with one line for people.
 */
async function decoded(file) {
  const name = nameOf(file);
  if (file.size > MOST_BYTES) throw new Error(`${name} is too large: at most 64 MB are read.`);
  // The whole file: megabytes of metadata can stand before the size, as depth maps in phones' JPEG files do.
  const bytes = new Uint8Array(await file.arrayBuffer());
  const kinds = Object.keys(FORMATS);
  const kind = kinds.find((each) => FORMATS[each](bytes));
  if (!kind) throw new Error(`${name} is not a ${kinds.slice(0, -1).join(", ")} or ${kinds.at(-1)} image.`);
  const { width, height } = FORMATS[kind](bytes);
  if (width * height > (MOST_PIXELS[kind] ?? MOST_PIXELS.PNG) || Math.max(width, height) > MOST_SIDE) {
    throw new Error(`${name} has ${width} × ${height} pixels, too many to decode; scale it down.`);
  }
  try {
    return { bitmap: await createImageBitmap(file, { colorSpaceConversion: "none" }), kind, bytes };
  } catch {
    throw new Error(`${name} cannot be decoded: the file is damaged.`);
  }
}

function pngSize(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 24 || view.getUint32(0) !== 0x89504e47 || view.getUint32(4) !== 0x0d0a1a0a) return null;
  return { width: view.getUint32(16), height: view.getUint32(20) };
}

/** From the frame header, past the segments before it. */
function jpegSize(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 4 || view.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; at + 9 <= bytes.length; ) {
    const marker = view.getUint16(at);
    if (marker < 0xffc0) return null;
    const frame = marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (frame) return { width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
    at += marker === 0xffff ? 1 : 2 + view.getUint16(at + 2);
  }
  return null;
}
