"use strict";
/* What the page is whatever the network is given: results shown and said, files handed over. */

const SAY_AFTER = 800; // milliseconds of rest before a result is read out

const byId = (id) => document.getElementById(id);
const model = JSON.parse(byId("model").textContent);
const network = new Network(model);
const [inputChannels, inputHeight, inputWidth] = model.shapes[0];
const bars = new Bars(byId("bars"), model.classes);
const layers = new Layers(byId("layers"), model, model.classes, innerWidth < 544 ? 2 : Infinity);
const sayResult = afterRest((text) => (byId("status").textContent = text));

/**
 * Run the network and show what comes out.
 * @param {Uint8Array} pixels by channel, row, column.
 */
function showResult(pixels) {
  const probabilities = softmax(network.run(pixels));
  const [first, second] = ranked(probabilities);
  showSeen(byId("seen"), pixels, model.shapes[0]);
  bars.show(probabilities);
  layers.show(network.values);
  showBest(model.classes[first], percent(probabilities[first], 1));
  const said = (index) => `${model.classes[index]}, ${percent(probabilities[index])}`;
  sayResult(`${byId("answer-title").textContent} ${said(first)}; next ${said(second)}`);
}

function showNothing() {
  showSeen(byId("seen"), new Uint8Array(network.values[0].length), model.shapes[0]);
  bars.show(null);
  layers.show(model.shapes.map(([channels, height, width]) => new Float32Array(channels * height * width)));
  showBest("–", "");
  sayResult("");
}

function showBest(name, share) {
  byId("best").textContent = name;
  byId("best").classList.toggle("long", name.length > SHORT_NAME);
  byId("share").textContent = share;
}

/** Show one line about what went wrong; an empty one takes it away. */
function tell(text) {
  byId("message").textContent = text;
}

/** The function, called once a frame at most. */
function atNextFrame(call) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      call();
    });
  };
}

/** The function, called when nothing has asked for it for a while. */
function afterRest(call) {
  let timer;
  return (text) => {
    clearTimeout(timer);
    timer = setTimeout(call, SAY_AFTER, text);
  };
}

/** Have files opened that are chosen, pasted or dropped; `area` shows that it takes them. */
function listenForFiles(area, open) {
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = ""; // so that the same file can be opened again
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) open(file);
    else tell("There is no image on the clipboard.");
  });
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    area.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) area.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    area.classList.remove("over");
    if (!carriesFile(event)) return;
    event.preventDefault(); // or the browser would leave this page for the image
    open(event.dataTransfer.files[0]);
  });
}
