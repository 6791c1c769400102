"use strict";
/*
 * The drawing area: strokes by pointer or keyboard, undo, and the drawing as a picture for the network.
 * Strokes are kept in shares of the area's side, so they look alike at any size, and what the network
 * gets does not depend on the screen.
 */

const RASTER = 280; // pixels a side of the picture for the network
const LINE = 0.07; // width of a line
const KEY_STEP = 0.025;
const FAR_KEY_STEP = 0.1;
const MOST_UNDO = 200;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const EMPTY = { strokes: [], bitmap: null, picture: null };

class Pad {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{changed: () => void, said: (text: string) => void}} listener told of every change of the
   *   drawing, and what the keyboard's pen does, in words.
   */
  constructor(canvas, listener) {
    this.canvas = canvas;
    this.listener = listener;
    this.drawing = EMPTY;
    this.history = [];
    this.stroke = null; // the one being drawn
    this.pointer = null; // that draws it; null: the keyboard
    this.pen = { x: 0.5, y: 0.5 };
    this.pressed = new Set();
    this.keyboard = false;
    this.raster = Object.assign(document.createElement("canvas"), { width: RASTER, height: RASTER });
    this.raster.getContext("2d", { willReadFrequently: true });
    this.listenToPointers();
    this.listenToKeys();
    new ResizeObserver(() => this.show()).observe(canvas);
  }

  get empty() {
    return !this.drawing.bitmap && this.drawing.strokes.length === 0;
  }

  /** What was drawn or opened, as red, green, blue, alpha; null: nothing yet. */
  get picture() {
    if (this.empty) return null;
    if (this.drawing.picture) return this.drawing.picture;
    const context = this.raster.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, RASTER, RASTER);
    drawStrokes(context, RASTER, this.drawing.strokes, "#fff");
    return context.getImageData(0, 0, RASTER, RASTER);
  }

  /** Show an image file instead of the strokes; `bitmap` is what is shown, `picture` its pixels. */
  place(bitmap, picture) {
    this.lift();
    this.become({ strokes: [], bitmap, picture });
  }

  clear() {
    this.lift();
    if (!this.empty) this.become(EMPTY);
  }

  undo() {
    this.lift();
    if (this.history.length === 0) return;
    this.drawing = this.history.pop();
    this.changed();
  }

  become(drawing) {
    this.history.push(this.drawing);
    this.history.splice(0, this.history.length - MOST_UNDO);
    this.drawing = drawing;
    this.changed();
  }

  changed() {
    this.show();
    this.listener.changed();
  }

  /** Put a pen down: a stroke begins; on an image that was opened, a new drawing. */
  begin(point, pointer) {
    this.stroke = [point];
    this.pointer = pointer;
    this.become({ ...EMPTY, strokes: [...this.drawing.strokes, this.stroke] });
  }

  lift() {
    this.stroke = null;
    this.pointer = null;
  }

  listenToPointers() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      event.preventDefault(); // no focus ring by mouse, no selection
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId); // continues outside the canvas
      this.keyboard = false;
      this.begin(this.pointOf(event), event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.stroke || event.pointerId !== this.pointer) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.stroke.push(this.pointOf(each));
      this.changed();
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => {
        if (event.pointerId === this.pointer) this.lift();
      });
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press draws
  }

  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const width = event.pointerType === "pen" && event.pressure > 0 ? LINE * (0.6 + 0.8 * event.pressure) : LINE;
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height, width };
  }

  listenToKeys() {
    const { canvas } = this;
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (this.onKey(event)) {
        event.preventDefault();
        this.keyboard = true;
        this.show();
      }
    });
    canvas.addEventListener("keyup", (event) => this.pressed.delete(event.key));
    canvas.addEventListener("focus", () => {
      this.keyboard = canvas.matches(":focus-visible");
      this.show();
    });
    canvas.addEventListener("blur", () => {
      this.pressed.clear();
      this.keyboard = false;
      if (this.pointer === null) this.lift();
      this.show();
    });
  }

  /** Whether the key means something here. */
  onKey(event) {
    if (event.key in ARROWS) {
      this.pressed.add(event.key);
      this.movePen(event.shiftKey ? FAR_KEY_STEP : KEY_STEP);
    } else if (event.key === " ") {
      if (!event.repeat) this.togglePen();
    } else if (event.key === "Escape") {
      this.lift();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return false;
    }
    return true;
  }

  /** Two arrow keys held together move the pen aslant. */
  movePen(step) {
    for (const key of this.pressed) {
      const [x, y] = ARROWS[key];
      this.pen.x = Math.min(Math.max(this.pen.x + x * step, 0), 1);
      this.pen.y = Math.min(Math.max(this.pen.y + y * step, 0), 1);
    }
    if (this.stroke && this.pointer === null) {
      this.stroke.push({ ...this.pen, width: LINE });
      this.changed();
    }
    this.listener.said(`pen ${this.stroke ? "down" : "up"}, ${percent(this.pen.x)} across, ${percent(this.pen.y)} down`);
  }

  togglePen() {
    if (this.stroke) this.lift();
    else this.begin({ ...this.pen, width: LINE }, null);
    this.listener.said(this.stroke ? "pen down" : "pen up");
  }

  /** Repaint the area at the screen's resolution. */
  show() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
    canvas.classList.toggle("keys", this.keyboard);
    if (side === 0) return;
    if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    if (this.drawing.bitmap) drawFitted(context, side, this.drawing.bitmap);
    drawStrokes(context, side, this.drawing.strokes, colour("--ink"));
    if (this.keyboard) drawPen(context, side, this.pen, this.stroke !== null);
  }
}

function drawStrokes(context, side, strokes, ink) {
  context.strokeStyle = context.fillStyle = ink;
  context.lineCap = "round";
  for (const points of strokes) {
    const [start] = points;
    context.beginPath();
    context.arc(start.x * side, start.y * side, (start.width * side) / 2, 0, 2 * Math.PI);
    context.fill();
    for (let i = 1; i < points.length; i++) {
      const [from, to] = [points[i - 1], points[i]];
      context.lineWidth = ((from.width + to.width) / 2) * side;
      context.beginPath();
      context.moveTo(from.x * side, from.y * side);
      context.lineTo(to.x * side, to.y * side);
      context.stroke();
    }
  }
}

/** The keyboard's pen: a ring, filled while it is down. */
function drawPen(context, side, { x, y }, down) {
  context.strokeStyle = context.fillStyle = colour("--accent");
  context.lineWidth = Math.max(2, side / 150);
  context.beginPath();
  context.arc(x * side, y * side, (LINE * side) / 2, 0, 2 * Math.PI);
  if (down) context.fill();
  context.stroke();
}
