"use strict";
/* A network of drawings: what is drawn, or opened, goes through it at once. */

const sayPen = afterRest((text) => (byId("pen").textContent = text));
const pad = new Pad(byId("pad"), { changed: atNextFrame(update), said: sayPen });

/** Run the network on what is on the drawing area. */
function update() {
  const picture = pad.picture;
  byId("hint").hidden = picture !== null;
  if (!picture) return showNothing();
  const seen = prepared(picture, inputHeight, inputWidth);
  if (seen) return showResult(seen);
  showNothing();
  tell("No ink stands out from the border of this image.");
}

async function openFile(file) {
  try {
    const { bitmap, picture } = scaled((await decoded(file)).bitmap);
    tell("");
    pad.place(bitmap, picture);
  } catch (error) {
    tell(error.message);
  }
}

function listen() {
  byId("pad").addEventListener("pointerdown", () => tell(""));
  byId("undo").addEventListener("click", () => pad.undo());
  byId("clear").addEventListener("click", () => {
    tell("");
    pad.clear();
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key === "z") {
      event.preventDefault();
      pad.undo();
    }
  });
  listenForFiles(byId("pad"), openFile);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    layers.recolour();
    pad.show();
  });
}

listen();
showNothing();
