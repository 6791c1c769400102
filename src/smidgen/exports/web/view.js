"use strict";
/* What the page shows of a result: the image that the network gets, the probabilities, the layers. */

const MOST_ROWS = 20; // of classes; with more, only the most probable are listed
const LISTED = 10;
const SHORT_NAME = 3; // of a class, letters: more are shown smaller
const MOST_MAPS = 64; // of a layer's channels

/** A colour of the style sheet, as it is in the present scheme. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A share as percent, cut and not rounded up, so that 99.96 never reads as 100. */
function percent(share, digits = 0) {
  const factor = 10 ** digits;
  return `${(Math.floor(share * 100 * factor + 1e-9) / factor).toFixed(digits)} %`;
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

/** Show grey or coloured pixels, 0 to 255 by channel, row, column, on a canvas of their size. */
function showSeen(canvas, pixels, [channels, height, width]) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const [green, blue] = channels === 3 ? [height * width, 2 * height * width] : [0, 0];
  for (let i = 0; i < height * width; i++) image.data.set([pixels[i], pixels[green + i], pixels[blue + i], 255], 4 * i);
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

/** An image in the middle of a square, as large as fits. */
function drawFitted(context, side, bitmap) {
  const factor = side / Math.max(bitmap.width, bitmap.height);
  const [width, height] = [bitmap.width * factor, bitmap.height * factor];
  context.drawImage(bitmap, (side - width) / 2, (side - height) / 2, width, height);
}

/** A row a class with its probability as a bar. */
class Bars {
  constructor(table, names) {
    this.names = names;
    this.listed = names.length > MOST_ROWS ? LISTED : names.length;
    table.classList.toggle("names", names.some((name) => name.length > SHORT_NAME));
    this.rows = Array.from({ length: this.listed }, (_, index) => {
      const bar = element("i");
      const label = element("th", { scope: "row", dir: "auto" }, names[index]);
      const share = element("td", {}, "–");
      const middle = element("td", {}, element("div", { className: "bar" }, bar));
      middle.setAttribute("aria-hidden", "true");
      const row = element("tr", {}, label, middle, share);
      table.tBodies[0].append(row);
      return { row, label, bar, share };
    });
  }

  /** @param {number[] | null} probabilities one a class; null: there is no drawing. */
  show(probabilities) {
    const order = probabilities ? ranked(probabilities) : [];
    const classes = this.listed < this.names.length && probabilities ? order : this.names.map((_, index) => index);
    this.rows.forEach(({ row, label, bar, share }, place) => {
      const index = classes[place];
      const probability = probabilities ? probabilities[index] : 0;
      label.textContent = this.names[index];
      bar.style.transform = `scaleX(${probability})`;
      share.textContent = probabilities ? percent(probability, 1) : "–";
      row.classList.toggle("top", index === order[0]);
    });
  }
}

/** Classes from the most probable to the least; of equals the first. */
function ranked(probabilities) {
  return probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
}

/** The layers, each with a small image a channel. */
class Layers {
  constructor(root, model, names, open) {
    this.layers = model.nodes.map((node, index) => {
      const [channels, height, width] = model.shapes[node.output];
      const shown = Math.min(channels, MOST_MAPS);
      const contexts = Array.from({ length: shown }, () =>
        element("canvas", { width, height }).getContext("2d"));
      const labels = node.output === model.output && channels === names.length ? names : null;
      const size = sizeOf(channels, height, width);
      const maps = element("div", { className: "maps" }, ...contexts.map(({ canvas }, channel) =>
        element("figure", {}, sized(canvas, height, width), element("bdi", {}, labels ? labels[channel] : ""))));
      maps.setAttribute("role", "img");
      maps.setAttribute("aria-label", `What ${node.name} responds with: ${size}`);
      if (shown < channels) maps.append(element("p", { className: "small" }, `and ${channels - shown} more`));
      const details = element("details", { open: index < open },
        element("summary", {}, element("b", {}, node.name), element("span", {}, `${node.title}`),
          element("span", { className: "size" }, size)), maps);
      details.addEventListener("toggle", () => this.show());
      root.append(details);
      return { details, contexts, height, width, value: node.output };
    });
    this.values = model.shapes.map(([channels, height, width]) => new Float32Array(channels * height * width));
    this.colours = ramp();
  }

  /** @param {Float32Array[]} values of the network; without them, the last ones in the present colours. */
  show(values = this.values) {
    this.values = values;
    for (const { details, contexts, height, width, value } of this.layers) {
      if (!details.open) continue;
      const numbers = values[value];
      const strongest = numbers.reduce((most, number) => Math.max(most, Math.abs(number)), 0) || 1;
      contexts.forEach((context, channel) => {
        const image = new ImageData(width, height);
        const pixels = new Uint32Array(image.data.buffer);
        const start = channel * height * width;
        for (let i = 0; i < pixels.length; i++) {
          pixels[i] = this.colours[Math.round((numbers[start + i] / strongest) * 255) + 255];
        }
        context.putImageData(image, 0, 0);
      });
    }
  }

  recolour() {
    this.colours = ramp();
    this.show();
  }
}

function sizeOf(channels, height, width) {
  const several = channels === 1 ? "" : "s";
  return height * width === 1 ? `${channels} value${several}` : `${channels} channel${several} of ${height} × ${width}`;
}

/** Small maps are shown larger, so that their pixels can be told apart. */
function sized(canvas, height, width) {
  const side = Math.max(height, width);
  const most = side >= 16 ? 64 : side >= 8 ? 54 : side >= 2 ? 45 : 24;
  canvas.style.width = `${(most * width) / side}px`;
  canvas.style.height = `${(most * height) / side}px`;
  return canvas;
}

/** 511 colours as pixels, from the strongest negative response through 0 to the strongest positive one. */
function ramp() {
  const [negative, zero, positive] = ["--negative", "--zero", "--positive"].map((name) =>
    colour(name).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)));
  const bytes = new Uint8ClampedArray(4 * 511);
  for (let i = 0; i < 511; i++) {
    const share = (i - 255) / 255;
    const end = share < 0 ? negative : positive;
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = zero[c] + (end[c] - zero[c]) * Math.abs(share);
    bytes[4 * i + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}
