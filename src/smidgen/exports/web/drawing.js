"use strict";
/*
 * From a picture of any size and either polarity to the form of the images that were trained on:
 * fitted to a box of 20 × 20 pixels, centred by mass in 28 × 28, light ink on black. The same rule,
 * step by step, as `smidgen predict` has for image files.
 */

const WORKING_SIDE = 512; // larger images are scaled to this before anything else
const LEAST_CONTRAST = 12; // of 255: less than this between ink and paper is noise
const INK = 0.1; // of the strongest ink: what is weaker does not count towards the drawing's extent

/**
 * An image, at most WORKING_SIDE pixels a side.
 * @param {ImageBitmap} whole
 * @returns {{bitmap: HTMLCanvasElement, picture: ImageData}}
 */
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

/**
 * Grey values of a picture; where it is transparent, of the paper that its ink calls for.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} picture red, green, blue, alpha.
 * @returns {{values: Float32Array, width: number, height: number}} 0 to 255.
 */
function greyOf({ data, width, height }) {
  const values = new Float32Array(width * height);
  let [weighted, opacity] = [0, 0];
  for (let i = 0, p = 0; i < values.length; i++, p += 4) {
    values[i] = (data[p] * 19595 + data[p + 1] * 38470 + data[p + 2] * 7471 + 32768) >> 16;
    weighted += values[i] * data[p + 3];
    opacity += data[p + 3];
  }
  const paper = opacity > 0 && weighted / opacity > 127 ? 0 : 255;
  for (let i = 0, p = 3; i < values.length; i++, p += 4) {
    values[i] = Math.trunc(paper + ((values[i] - paper) * data[p]) / 255);
  }
  return { values, width, height };
}

/**
 * How much ink each pixel has, whichever of ink and paper is the darker; the border is paper.
 * @returns {{values: Float32Array, width: number, height: number} | null} 0 to 1; null: blank.
 */
function inkOf({ values, width, height }) {
  const border = borderOf(values, width, height);
  const paper = quantile(border, 0.5);
  let [balance, darkest, lightest] = [0, 0, 0];
  for (let i = 0; i < values.length; i++) {
    const darker = paper - values[i];
    balance += darker;
    if (darker > darkest) darkest = darker;
    if (-darker > lightest) lightest = -darker;
  }
  const [sign, strongest] = balance > 0 ? [1, darkest] : [-1, lightest];
  if (strongest < LEAST_CONTRAST) return null;
  // Grain of paper or compression, as strong as what the border shows, is not ink.
  const spread = quantile(border.map((value) => Math.abs(value - paper)), 0.9);
  const grain = Math.min(0.5 * strongest, 2 * spread);
  const ink = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = sign * (paper - values[i]);
    if (value > grain) ink[i] = value / strongest;
  }
  return { values: ink, width, height };
}

function borderOf(values, width, height) {
  const across = [values.subarray(0, width), values.subarray((height - 1) * width)];
  const down = Array.from({ length: height }, (_, row) => [values[row * width], values[row * width + width - 1]]);
  return Float32Array.from([...across[0], ...across[1], ...down.flat()]);
}

/** Between the two nearest values, in proportion. */
function quantile(values, share) {
  const sorted = values.slice().sort();
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

/** The part of a picture that holds the drawing. */
function cropped({ values, width, height }) {
  let [top, bottom, left, right] = [height, 0, width, 0];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (values[row * width + column] <= INK) continue;
      top = Math.min(top, row);
      bottom = row + 1;
      left = Math.min(left, column);
      right = Math.max(right, column + 1);
    }
  }
  const part = new Float32Array((right - left) * (bottom - top));
  for (let row = top; row < bottom; row++) {
    part.set(values.subarray(row * width + left, row * width + right), (row - top) * (right - left));
  }
  return { values: part, width: right - left, height: bottom - top };
}

/**
 * Bring a picture to the form of the images that were trained on.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} picture
 * @returns {Uint8Array | null} height × width values; null: nothing stands out from the border.
 */
function prepared(picture, height, width) {
  const ink = inkOf(greyOf(picture));
  return ink && centred(cropped(ink), height, width);
}

function centred(drawing, height, width) {
  const box = rounded((Math.min(height, width) * 20) / 28);
  const factor = box / Math.max(drawing.width, drawing.height);
  const small = resized(drawing, Math.max(1, rounded(drawing.width * factor)), Math.max(1, rounded(drawing.height * factor)));
  const values = small.values.map((value) => Math.min(Math.max(value, 0), 1));
  let [mass, down, across] = [0, 0, 0];
  values.forEach((value, i) => {
    mass += value;
    down += value * Math.floor(i / small.width);
    across += value * (i % small.width);
  });
  mass = Math.max(mass, 1e-9);
  const within = (place, most) => Math.min(Math.max(place, 0), most);
  const top = within(rounded(Math.floor(height / 2) - down / mass), height - small.height);
  const left = within(rounded(Math.floor(width / 2) - across / mass), width - small.width);
  const result = new Uint8Array(height * width);
  values.forEach((value, i) => {
    const [row, column] = [Math.floor(i / small.width), i % small.width];
    result[(top + row) * width + left + column] = rounded(Math.fround(value * 255));
  });
  return result;
}

/*
 * Resizing as Pillow does it: first means over whole blocks, as long as three times the size is left,
 * then a bicubic filter as wide as the step that is left.
 */

function resized(image, width, height) {
  const fewer = (from, to) => Math.floor(from / to / 3) || 1;
  const [across, down] = [fewer(image.width, width), fewer(image.height, height)];
  const means = across > 1 || down > 1 ? reduced(image, across, down) : image;
  const narrow = filtered(means, width, image.width / across);
  return transposed(filtered(transposed(narrow), height, image.height / down));
}

function reduced({ values, width, height }, across, down) {
  const result = { width: Math.ceil(width / across), height: Math.ceil(height / down) };
  result.values = new Float32Array(result.width * result.height);
  for (let row = 0; row < result.height; row++) {
    for (let column = 0; column < result.width; column++) {
      const [bottom, right] = [Math.min((row + 1) * down, height), Math.min((column + 1) * across, width)];
      let [sum, count] = [0, 0];
      for (let y = row * down; y < bottom; y++) {
        for (let x = column * across; x < right; x++, count++) sum += values[y * width + x];
      }
      result.values[row * result.width + column] = sum / count;
    }
  }
  return result;
}

/** The image with another width, of which `extent` source columns are taken (a fraction where blocks were cut). */
function filtered({ values, width, height }, wanted, extent) {
  const scale = extent / wanted;
  const widened = Math.max(scale, 1);
  const support = 2 * widened;
  const result = new Float32Array(wanted * height);
  for (let column = 0; column < wanted; column++) {
    const centre = (column + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), width);
    const weights = [];
    for (let x = first; x < last; x++) weights.push(bicubic((x - centre + 0.5) / widened));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let row = 0; row < height; row++) {
      let sum = 0;
      weights.forEach((weight, i) => (sum += values[row * width + first + i] * (weight / total)));
      result[row * wanted + column] = sum;
    }
  }
  return { values: result, width: wanted, height };
}

/** Keys's cubic with a = -0.5. */
function bicubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

function transposed({ values, width, height }) {
  const result = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) result[(i % width) * height + Math.floor(i / width)] = values[i];
  return { values: result, width: height, height: width };
}
