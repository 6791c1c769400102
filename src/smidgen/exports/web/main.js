"use strict";
/* The page: from the drawing or an image file through the network to what is shown and said. */

const SAY_AFTER = 800; // milliseconds of rest before a result is read out

const byId = (id) => document.getElementById(id);
const model = JSON.parse(byId("model").textContent);
const network = new Network(model);
const [inputChannels, inputHeight, inputWidth] = model.shapes[0];
const bars = new Bars(byId("bars"), model.classes);
const layers = new Layers(byId("layers"), model, model.classes, innerWidth < 544 ? 2 : Infinity);
const sayResult = afterRest((text) => (byId("status").textContent = text));
const sayPen = afterRest((text) => (byId("pen").textContent = text));
const pad = new Pad(byId("pad"), { changed: atNextFrame(update), said: sayPen });

/** Run the network on what is on the drawing area. */
function update() {
  const picture = pad.picture;
  byId("hint").hidden = picture !== null;
  if (!picture) return showNothing();
  const seen = prepared(picture, inputHeight, inputWidth);
  if (!seen) {
    showNothing();
    return tell("No ink stands out from the border of this image.");
  }
  const pixels = new Uint8Array(inputChannels * seen.length);
  for (let channel = 0; channel < inputChannels; channel++) pixels.set(seen, channel * seen.length);
  const probabilities = softmax(network.run(pixels));
  const [first, second] = ranked(probabilities);
  showSeen(byId("seen"), seen, inputHeight, inputWidth);
  bars.show(probabilities);
  layers.show(network.values);
  byId("best").textContent = model.classes[first];
  byId("share").textContent = percent(probabilities[first], 1);
  const said = (index) => `${model.classes[index]}, ${percent(probabilities[index])}`;
  sayResult(`It reads ${said(first)}; next ${said(second)}`);
}

function showNothing() {
  showSeen(byId("seen"), new Uint8Array(inputHeight * inputWidth), inputHeight, inputWidth);
  bars.show(null);
  layers.show(model.shapes.map(([channels, height, width]) => new Float32Array(channels * height * width)));
  byId("best").textContent = "–";
  byId("share").textContent = "";
  sayResult("");
}

/** Show one line about what went wrong; an empty one takes it away. */
function tell(text) {
  byId("message").textContent = text;
}

async function openFile(file) {
  try {
    const { bitmap, picture } = await readPicture(file);
    tell("");
    pad.place(bitmap, picture);
  } catch (error) {
    tell(error.message);
  }
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

function listen() {
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  byId("pad").addEventListener("pointerdown", () => tell(""));
  byId("undo").addEventListener("click", () => pad.undo());
  byId("clear").addEventListener("click", () => {
    tell("");
    pad.clear();
  });
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files.length) openFile(target.files[0]);
    target.value = ""; // so that the same file can be opened again
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key === "z") {
      event.preventDefault();
      pad.undo();
    }
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) openFile(file);
    else tell("There is no image on the clipboard.");
  });
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    byId("pad").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("pad").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    byId("pad").classList.remove("over");
    if (!carriesFile(event)) return;
    event.preventDefault(); // or the browser would leave this page for the image
    openFile(event.dataTransfer.files[0]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    layers.recolour();
    pad.show();
  });
}

listen();
showNothing();
