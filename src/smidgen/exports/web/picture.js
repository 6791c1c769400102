"use strict";
/*
 * From a picture of any size to the form of the pictures that were trained on: on white where it is
 * transparent, scaled to fit with its proportions kept, centred on black. The same rule, step by step
 * and in the same whole numbers, as `smidgen predict` has (Pillow's triangle filter). Nothing here
 * touches the page.
 */

const SCALE_BITS = 22; // of a weight's fraction, as in Pillow
const JPEG_SCALES = [8, 4, 2, 1];

/**
 * Red, green, blue, alpha of some pixels into planes, from a place on: colour into three, grey into one.
 * @param {Uint8ClampedArray} data
 * @param {Uint8Array[]} planes
 */
function separate(data, planes, at) {
  for (let p = 0; p < data.length; p += 4, at++) {
    const [red, green, blue] = [0, 1, 2].map((c) => onWhite(data[p + c], data[p + 3]));
    if (planes.length === 1) {
      planes[0][at] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
    } else {
      planes[0][at] = red;
      planes[1][at] = green;
      planes[2][at] = blue;
    }
  }
}

function onWhite(value, alpha) {
  if (alpha === 255) return value;
  if (alpha === 0) return 255;
  const sum = value * alpha * 128 + 255 * (255 - alpha) * 128 + 0x4000;
  return ((sum >> 8) + sum) >> 15;
}

/**
 * Bring a picture to the form of those that were trained on.
 * @param {{planes: Uint8Array[], width: number, height: number}} picture a plane a channel.
 * @param {string} kind `JPEG` files are shrunk first, as their decoder can.
 * @returns {Uint8Array} by channel, row, column.
 */
function fitted({ planes, width, height }, kind, wantedHeight, wantedWidth) {
  const area = wantedHeight * wantedWidth;
  const result = new Uint8Array(planes.length * area);
  planes.forEach((values, channel) => {
    let plane = { values, width, height };
    if (kind === "JPEG") plane = shrunk(plane, 2 * Math.max(wantedHeight, wantedWidth));
    const factor = Math.min(wantedWidth / plane.width, wantedHeight / plane.height);
    const side = (length, most) => Math.max(1, Math.min(most, rounded(length * factor)));
    const small = resized(plane, side(plane.width, wantedWidth), side(plane.height, wantedHeight));
    const top = Math.floor((wantedHeight - small.height) / 2);
    const left = Math.floor((wantedWidth - small.width) / 2);
    for (let row = 0; row < small.height; row++) {
      const line = small.values.subarray(row * small.width, (row + 1) * small.width);
      result.set(line, channel * area + (top + row) * wantedWidth + left);
    }
  });
  return result;
}

/** To an eighth, a quarter or half, but no smaller than `least`: near to what a JPEG decoder does by itself. */
function shrunk(plane, least) {
  const most = Math.min(Math.floor(plane.width / least), Math.floor(plane.height / least));
  const scale = JPEG_SCALES.find((each) => most >= each) ?? 1;
  return scale > 1 ? reduced(plane, scale, scale) : plane;
}

/** First means over whole blocks, as long as three times the size is left, then the filter. */
function resized(plane, width, height) {
  if (plane.width === width && plane.height === height) return plane;
  const fewer = (from, to) => Math.floor(from / to / 3) || 1;
  const [across, down] = [fewer(plane.width, width), fewer(plane.height, height)];
  const means = across > 1 || down > 1 ? reduced(plane, across, down) : plane;
  const narrow = (image) => filtered(image, width, Math.fround(plane.width / across));
  const low = (image) => transposed(filtered(transposed(image), height, Math.fround(plane.height / down)));
  // Each pass rounds, so the order counts; Pillow before 13 always narrows first.
  const tall = means.height > height && means.height - height > 2 * (means.width - width);
  return tall ? narrow(low(means)) : low(narrow(means));
}

/** Means of blocks; those at the right and bottom edges may be smaller. */
function reduced({ values, width, height }, across, down) {
  const result = { width: Math.ceil(width / across), height: Math.ceil(height / down) };
  result.values = new Uint8Array(result.width * result.height);
  for (let row = 0; row < result.height; row++) {
    const bottom = Math.min((row + 1) * down, height);
    for (let column = 0; column < result.width; column++) {
      const right = Math.min((column + 1) * across, width);
      const count = (bottom - row * down) * (right - column * across);
      let sum = Math.floor(count / 2);
      for (let y = row * down; y < bottom; y++) {
        for (let x = column * across; x < right; x++) sum += values[y * width + x];
      }
      const share = Math.floor(Math.fround(2 ** 24 / count));
      result.values[row * result.width + column] = Math.floor((sum * share) / 2 ** 24);
    }
  }
  return result;
}

/** The plane with another width, of which `extent` columns are taken (a fraction where blocks were cut). */
function filtered({ values, width, height }, wanted, extent) {
  if (wanted === width && extent === width) return { values, width, height };
  const scale = extent / wanted;
  const support = Math.max(scale, 1);
  const result = new Uint8Array(wanted * height);
  for (let column = 0; column < wanted; column++) {
    const centre = (column + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), width);
    const shares = [];
    for (let x = first; x < last; x++) shares.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / support))));
    const total = shares.reduce((a, b) => a + b, 0);
    const weights = shares.map((share) => Math.trunc(0.5 + (share / total) * 2 ** SCALE_BITS));
    for (let row = 0; row < height; row++) {
      let sum = 2 ** (SCALE_BITS - 1);
      for (let i = 0; i < weights.length; i++) sum += values[row * width + first + i] * weights[i];
      result[row * wanted + column] = Math.min(255, sum >> SCALE_BITS);
    }
  }
  return { values: result, width: wanted, height };
}

function transposed({ values, width, height }) {
  const result = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) result[(i % width) * height + Math.floor(i / width)] = values[i];
  return { values: result, width: height, height: width };
}
