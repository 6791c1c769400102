"use strict";
/*
 * Runs the network of an exported page over images: node check.cjs PAGE
 *
 * Takes the page's own script and model out of the file. Reads images from standard input, one
 * byte a pixel, and writes to standard output the seconds that classifying them took (one float64)
 * and then the scores of each (float32), both little-endian. Not part of the page.
 */

const fs = require("node:fs");
const vm = require("node:vm");

function element(html, id) {
  const found = html.match(new RegExp(`<script[^>]* id="${id}"[^>]*>([^]*?)</script>`));
  if (!found) throw new Error(`the page has no script with the id ${id}`);
  return found[1];
}

function readAll() {
  const parts = [];
  const part = Buffer.alloc(1 << 20);
  for (let count; (count = fs.readSync(0, part)) > 0; ) parts.push(Buffer.from(part.subarray(0, count)));
  return Buffer.concat(parts);
}

function main(path) {
  const html = fs.readFileSync(path, "utf8");
  const model = JSON.parse(element(html, "model"));
  const Network = vm.runInThisContext(`${element(html, "network")}\nNetwork;`);
  const network = new Network(model);
  const images = readAll();
  const size = network.values[0].length;
  const count = Math.floor(images.length / size);
  const scores = [];
  const start = performance.now();
  for (let image = 0; image < count; image++) {
    scores.push(Float32Array.from(network.run(images.subarray(image * size, (image + 1) * size))));
  }
  const seconds = (performance.now() - start) / 1000;
  const classes = network.values[network.output].length;
  const result = Buffer.alloc(8 + 4 * count * classes);
  result.writeDoubleLE(seconds, 0);
  scores.forEach((row, image) => {
    row.forEach((score, index) => result.writeFloatLE(score, 8 + 4 * (image * classes + index)));
  });
  for (let written = 0; written < result.length; ) written += fs.writeSync(1, result, written);
}

try {
  main(process.argv[2]);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
}
