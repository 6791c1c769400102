"use strict";
/* A network of pictures: an image file is opened and goes through it. */

const STRIP_PIXELS = 2 ** 20; // read at a time, so that a large picture is in memory once

const area = byId("picture");
let shown = null; // the ImageBitmap that is on the page
let asked = 0; // how many files were to be opened: the last one counts

async function openFile(file) {
  const turn = ++asked;
  try {
    const { bitmap, kind, bytes } = await decoded(file);
    if (isAnimated(kind, bytes)) {
      throw new Error(`${nameOf(file)} is animated; keep one frame of it.`);
    }
    if (turn !== asked) return bitmap.close();
    tell("");
    showPicture(bitmap, nameOf(file));
    showResult(fitted(pixelsOf(bitmap, inputChannels), kind, inputHeight, inputWidth));
  } catch (error) {
    if (turn === asked) tell(error.message);
  }
}

/** A decoded picture as a plane a channel. */
function pixelsOf(bitmap, channels) {
  const { width, height } = bitmap;
  const planes = Array.from({ length: channels }, () => new Uint8Array(width * height));
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP_PIXELS / width)));
  const strip = Object.assign(document.createElement("canvas"), { width, height: rows });
  const context = strip.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    separate(context.getImageData(0, 0, width, count).data, planes, top * width);
  }
  return { planes, width, height };
}

function showPicture(bitmap, name) {
  shown?.close();
  shown = bitmap;
  byId("hint").hidden = true;
  area.setAttribute("aria-label", `The picture ${name}`);
  paint();
}

/** Repaint the picture at the screen's resolution. */
function paint() {
  const side = Math.round(area.clientWidth * (window.devicePixelRatio || 1));
  if (side === 0) return;
  if (area.width !== side) area.width = area.height = side;
  const context = area.getContext("2d");
  context.clearRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  if (shown) drawFitted(context, side, shown);
}

listenForFiles(area, openFile);
area.addEventListener("click", () => byId("file").click());
new ResizeObserver(paint).observe(area);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => layers.recolour());
showNothing();
