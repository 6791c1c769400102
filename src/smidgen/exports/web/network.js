"use strict";
/*
 * The network: reads the exported model and runs it. Nothing here touches the page, so the same
 * text runs in a browser and in node, where the export is checked over the whole test set.
 *
 * Values are float32; sums are taken in double precision, which is what JavaScript counts in.
 */

const { fround } = Math;

/** The numbers of a base64 text of float32 values in little-endian order. */
function decodeFloats(base64) {
  const binary = atob(base64);
  const view = new DataView(Uint8Array.from(binary, (c) => c.charCodeAt(0)).buffer);
  return Float32Array.from({ length: binary.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** A model ready to be run, one image at a time. */
class Network {
  /**
   * @param {object} model as the exporter writes it: `shapes` [channels, height, width] of each
   *   value, `nodes` in the order in which they run, `output`, `mean`, `std`, `weights` (base64).
   */
  constructor(model) {
    const weights = decodeFloats(model.weights);
    this.mean = fround(model.mean);
    this.std = fround(model.std);
    this.output = model.output;
    /** The values of the last image: [0] is the input; each is a Float32Array by channel, row, column. */
    this.values = model.shapes.map(([channels, height, width]) => new Float32Array(channels * height * width));
    this.steps = model.nodes.map((node) => {
      const inputs = node.inputs.map((value) => this.values[value]);
      const from = model.shapes[node.inputs[0]];
      const to = model.shapes[node.output];
      const part = (place) => (place ? weights.subarray(place[0], place[0] + place[1]) : null);
      return operations[node.kind](node, inputs, this.values[node.output], from, to, part);
    });
  }

  /**
   * Run the network.
   * @param {Uint8Array} pixels of one image, 0 to 255, by channel, row, column.
   * @returns {Float32Array} one score (logit) a class; the next call overwrites it.
   */
  run(pixels) {
    const input = this.values[0];
    for (let i = 0; i < input.length; i++) {
      input[i] = fround(fround(fround(pixels[i] / 255) - this.mean) / this.std);
    }
    for (const step of this.steps) step();
    return this.values[this.output];
  }
}

/** Scores as probabilities that add up to 1. */
function softmax(scores) {
  const highest = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/*
 * For each kind of node, a function that prepares it and returns the step that is run for each image.
 * They take the node, its inputs, its output, the shapes of the first input and of the output, and a
 * function from a place among the weights to the numbers there.
 */
const operations = { convolution, affine, pool, activation, add, concatenate };

/*
 * A convolution works out LANES output channels at PLACES neighbouring places at once, so that each
 * number it reads is used several times; twice as fast as one at a time.
 */
const LANES = 5;
const PLACES = 2;

function convolution(node, [x], y, from, to, part) {
  const { groups, stride } = node;
  const [outputs, rows, columns] = to;
  const [perGroup, seen] = [outputs / groups, from[0] / groups];
  const taps = seen * node.kernel[0] * node.kernel[1];
  const blocks = Math.ceil(perGroup / LANES);
  const padded = paddedInput(node, from);
  const packed = packedWeights(part(node.weight), outputs, taps, groups);
  const bias = Float64Array.from(part(node.bias));
  const offsets = tapOffsets(node, seen, padded);
  const lowest = node.relu ? 0 : -Infinity;
  const scale = part(node.scale) ?? new Float32Array(outputs).fill(1);
  const shift = part(node.shift) ?? new Float32Array(outputs);
  const sums = new Float64Array(LANES * PLACES);
  const area = rows * columns;

  return () => {
    padded.fill(x);
    for (let block = 0; block < groups * blocks; block++) {
      const group = Math.floor(block / blocks);
      const weights = packed.subarray(block * taps * LANES);
      const first = group * perGroup + (block % blocks) * LANES;
      const last = Math.min(first + LANES, (group + 1) * perGroup);
      for (let row = 0; row < rows; row++) {
        const line = (group * seen * padded.height + row * stride[0]) * padded.width;
        for (let column = 0; column < columns; column += PLACES) {
          sumTaps(padded.values, line + column * stride[1], stride[1], offsets, weights, sums);
          const places = Math.min(PLACES, columns - column);
          for (let channel = first; channel < last; channel++) {
            for (let place = 0; place < places; place++) {
              const sum = Math.max(lowest, sums[(channel - first) * PLACES + place] + bias[channel]);
              y[channel * area + row * columns + column + place] = sum * scale[channel] + shift[channel];
            }
          }
        }
      }
    }
  };
}

/**
 * Into `sums`: the products of the input at `start` and one step further with the weights of LANES
 * output channels, added up. The sums are variables of their own to stay in the processor's registers.
 */
function sumTaps(values, start, step, offsets, weights, sums) {
  let a0 = 0, a1 = 0, b0 = 0, b1 = 0, c0 = 0, c1 = 0, d0 = 0, d1 = 0, e0 = 0, e1 = 0;
  for (let tap = 0, w = 0; tap < offsets.length; tap++, w += LANES) {
    const at = start + offsets[tap];
    const here = values[at];
    const there = values[at + step];
    a0 += here * weights[w];
    a1 += there * weights[w];
    b0 += here * weights[w + 1];
    b1 += there * weights[w + 1];
    c0 += here * weights[w + 2];
    c1 += there * weights[w + 2];
    d0 += here * weights[w + 3];
    d1 += there * weights[w + 3];
    e0 += here * weights[w + 4];
    e1 += there * weights[w + 4];
  }
  sums[0] = a0;
  sums[1] = a1;
  sums[2] = b0;
  sums[3] = b1;
  sums[4] = c0;
  sums[5] = c1;
  sums[6] = d0;
  sums[7] = d1;
  sums[8] = e0;
  sums[9] = e1;
}

/** Room for an input with zeros around it, so that no kernel has to ask where the image ends. */
function paddedInput(node, [channels, height, width]) {
  const [above, before] = node.padding;
  const plan = { height: height + 2 * above, width: width + 2 * before };
  // The last of PLACES places can lie one step beyond the end; what is read there is not used.
  plan.values = new Float64Array(channels * plan.height * plan.width + node.stride[1]);
  plan.fill = (x) => {
    for (let line = 0; line < channels * height; line++) {
      const row = Math.floor(line / height) * plan.height + above + (line % height);
      plan.values.set(x.subarray(line * width, (line + 1) * width), row * plan.width + before);
    }
  };
  return plan;
}

/** Weights with those of LANES neighbouring output channels side by side; zeros fill the last block of a group. */
function packedWeights(weight, outputs, taps, groups) {
  const perGroup = outputs / groups;
  const perGroupPacked = Math.ceil(perGroup / LANES) * LANES;
  const packed = new Float64Array(groups * perGroupPacked * taps);
  for (let output = 0; output < outputs; output++) {
    const place = Math.floor(output / perGroup) * perGroupPacked + (output % perGroup);
    const start = (place - (place % LANES)) * taps + (place % LANES);
    for (let tap = 0; tap < taps; tap++) packed[start + tap * LANES] = weight[output * taps + tap];
  }
  return packed;
}

/** Where each weight of a kernel finds its value, counted from the kernel's first. */
function tapOffsets(node, seen, plan) {
  const offsets = [];
  for (let channel = 0; channel < seen; channel++) {
    for (let row = 0; row < node.kernel[0]; row++) {
      for (let column = 0; column < node.kernel[1]; column++) {
        const line = channel * plan.height + row * node.dilation[0];
        offsets.push(line * plan.width + column * node.dilation[1]);
      }
    }
  }
  return Int32Array.from(offsets);
}

function affine(node, [x], y, from, to, part) {
  const [scale, shift] = [part(node.scale), part(node.shift)];
  const area = to[1] * to[2];
  const lowest = node.relu ? 0 : -Infinity;
  return () => {
    for (let i = 0; i < y.length; i++) {
      const channel = Math.floor(i / area);
      y[i] = Math.max(lowest, x[i] * scale[channel] + shift[channel]);
    }
  };
}

function pool(node, [x], y, [, height, width], [channels, rows, columns]) {
  const reduce = node.which === "max" ? highest : mean;
  return () => {
    let i = 0;
    for (let channel = 0; channel < channels; channel++) {
      const image = x.subarray(channel * height * width, (channel + 1) * height * width);
      for (let row = 0; row < rows; row++) {
        const [top, bottom] = extent(node, 0, row, height);
        for (let column = 0; column < columns; column++) {
          const [left, right] = extent(node, 1, column, width);
          y[i++] = reduce(node, image, width, top, bottom, left, right);
        }
      }
    }
  };
}

/** First and one past the last position of a pooling window, on one axis, within the image. */
function extent(node, axis, place, side) {
  const start = place * node.stride[axis] - node.padding[axis];
  return [Math.max(start, 0), Math.min(start + node.kernel[axis], side)];
}

function highest(node, image, width, top, bottom, left, right) {
  let found = -Infinity;
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      const value = image[row * width + column];
      if (value > found) found = value;
    }
  }
  return found;
}

function mean(node, image, width, top, bottom, left, right) {
  let sum = 0;
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) sum += image[row * width + column];
  }
  return sum / (node.countPadding ? node.kernel[0] * node.kernel[1] : (bottom - top) * (right - left));
}

/*ACTIVATIONS*/

function activation(node, [x], y) {
  const act = activations[node.which](...node.parameters);
  return () => {
    for (let i = 0; i < y.length; i++) y[i] = act(x[i]);
  };
}

function add(node, [a, b], y) {
  return () => {
    for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
  };
}

function concatenate(node, inputs, y) {
  return () => {
    let place = 0;
    for (const x of inputs) {
      y.set(x, place);
      place += x.length;
    }
  };
}
