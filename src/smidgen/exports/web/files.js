"use strict";
/* Image files, decoded by the browser; within the bounds that `smidgen predict` keeps. */

const MOST_BYTES = 64 * 2 ** 20;
const MOST_PIXELS = { PNG: 36e6, JPEG: 50e6 };
const MOST_SIDE = 20000;
const WORKING_SIDE = 512;
const HEADER_BYTES = 2 ** 20;

/**
 * Decode an image file.
 * @param {File} file
 * @returns {Promise<{bitmap: HTMLCanvasElement, picture: ImageData}>} at most WORKING_SIDE pixels a side.
 * @throws {Error} with one line for people.
 */
async function readPicture(file) {
  const name = file.name || "what was pasted";
  if (file.size > MOST_BYTES) throw new Error(`${name} is too large: at most 64 MB are read.`);
  const header = new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer());
  const found = pngSize(header) ?? jpegSize(header);
  if (!found) throw new Error(`${name} is not a PNG or JPEG image.`);
  const { kind, width, height } = found;
  if (width * height > MOST_PIXELS[kind] || Math.max(width, height) > MOST_SIDE) {
    throw new Error(`${name} has ${width} × ${height} pixels, too many to decode; scale it down.`);
  }
  try {
    const whole = await createImageBitmap(file, { colorSpaceConversion: "none" });
    return scaled(whole);
  } catch {
    throw new Error(`${name} cannot be decoded: the file is damaged.`);
  }
}

function scaled(whole) {
  const factor = Math.min(1, WORKING_SIDE / Math.max(whole.width, whole.height));
  const [width, height] = [whole.width, whole.height].map((side) => Math.max(1, Math.round(side * factor)));
  const bitmap = Object.assign(document.createElement("canvas"), { width, height });
  const context = bitmap.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, width, height);
  whole.close();
  return { bitmap, picture: context.getImageData(0, 0, width, height) };
}

function pngSize(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 24 || view.getUint32(0) !== 0x89504e47 || view.getUint32(4) !== 0x0d0a1a0a) return null;
  return { kind: "PNG", width: view.getUint32(16), height: view.getUint32(20) };
}

/** From the frame header, past the segments before it. */
function jpegSize(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 4 || view.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; at + 9 <= bytes.length; ) {
    const marker = view.getUint16(at);
    if (marker < 0xffc0) return null;
    const frame = marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (frame) return { kind: "JPEG", width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
    at += marker === 0xffff ? 1 : 2 + view.getUint16(at + 2);
  }
  return null;
}
