"use strict";
/* Formats that only networks of pictures read, and which files hold more than one picture. */

Object.assign(FORMATS, { BMP: bmpSize, GIF: gifSize, WebP: webpSize });

function startsWith(bytes, text, at = 0) {
  return Array.from(text).every((letter, i) => bytes[at + i] === letter.charCodeAt(0));
}

function bmpSize(bytes) {
  if (bytes.length < 26 || !startsWith(bytes, "BM")) return null;
  const view = new DataView(bytes.buffer);
  if (view.getUint32(14, true) === 12) return { width: view.getUint16(18, true), height: view.getUint16(20, true) };
  return { width: Math.abs(view.getInt32(18, true)), height: Math.abs(view.getInt32(22, true)) };
}

function gifSize(bytes) {
  if (bytes.length < 13 || !startsWith(bytes, "GIF8")) return null;
  const view = new DataView(bytes.buffer);
  return { width: view.getUint16(6, true), height: view.getUint16(8, true) };
}

function webpSize(bytes) {
  if (bytes.length < 30 || !startsWith(bytes, "RIFF") || !startsWith(bytes, "WEBPVP8", 8)) return null;
  const view = new DataView(bytes.buffer);
  const three = (at) => view.getUint16(at, true) + 65536 * bytes[at + 2];
  if (startsWith(bytes, "X", 15)) return { width: three(24) + 1, height: three(27) + 1 };
  if (startsWith(bytes, "L", 15)) {
    const sides = view.getUint32(21, true);
    return { width: (sides & 0x3fff) + 1, height: ((sides >> 14) & 0x3fff) + 1 };
  }
  return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
}

/**
 * Whether an image file has more than one frame.
 * @param {string} kind a key of FORMATS.
 * @param {Uint8Array} bytes the whole file.
 */
function isAnimated(kind, bytes) {
  const count = { GIF: gifFrames, PNG: pngFrames, WebP: webpFrames }[kind];
  return count !== undefined && count(bytes) > 1;
}

function gifFrames(bytes) {
  const table = (flags) => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  const afterBlocks = (at) => {
    while (bytes[at] > 0) at += 1 + bytes[at];
    return at + 1;
  };
  let frames = 0;
  for (let at = 13 + table(bytes[10]); at < bytes.length; ) {
    if (bytes[at] === 0x21) {
      at = afterBlocks(at + 2);
    } else if (bytes[at] === 0x2c) {
      frames++;
      at = afterBlocks(at + 11 + table(bytes[at + 9]));
    } else {
      break; // the end, or damage
    }
  }
  return frames;
}

/** As its animation chunk says, which stands before the pixels. */
function pngFrames(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length && !startsWith(bytes, "IDAT", at + 4); at += 12 + view.getUint32(at)) {
    if (startsWith(bytes, "acTL", at + 4)) return view.getUint32(at + 8);
  }
  return 1;
}

function webpFrames(bytes) {
  const view = new DataView(bytes.buffer);
  let frames = 0;
  for (let at = 12; at + 8 <= bytes.length; ) {
    if (startsWith(bytes, "ANMF", at)) frames++;
    const length = view.getUint32(at + 4, true);
    at += 8 + length + (length % 2);
  }
  return frames;
}
