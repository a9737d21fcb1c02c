// Made by colorpress. Copyright (c) 2026 the colorpress authors. SPDX-License-Identifier: MIT
// What a person sees. The photograph is decoded and coloured in worker.js, so the page never stands still.
"use strict";

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const isPhone = matchMedia("(pointer: coarse)").matches;
// A phone has less memory, and its canvases end at 16.7 megapixels.
const MAX_PIXELS = isPhone ? 16e6 : 24e6;

// The address of the page may name one, as in ?runtime=wasm; else the worker chooses.
let runtime = ["webgpu", "wasm"].find((name) => name === new URLSearchParams(location.search).get("runtime")) ?? "";
let gaveUp = ""; // what the page says once WebGPU has failed
const fileBytes = new Map(); // by address, of what workers loaded
let worker = null;
let running = null; // the photograph that the worker has
let waiting = null; // the one chosen since; of several the last
let finished = null; // {name} of what is shown

function startWorker() {
  // Through a blob, since only such a worker inherits the page's content security policy.
  const source = `import ${JSON.stringify(new URL("worker.js", document.baseURI).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  worker = new Worker(address, { type: "module", name: runtime });
  worker.onmessage = ({ data }) => handlers[data.kind](data);
  worker.onerror = (event) => {
    event.preventDefault();
    handlers.broken({ text: "The colouring program could not be started. This needs a browser of 2023 or newer." });
  };
}

const handlers = {
  loading({ loaded, total }) {
    showProgress(`Loading the colouring program: ${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ""}`,
      total ? loaded / total : undefined);
  },
  ready({ milliseconds, place, version, files }) {
    document.body.dataset.loadMilliseconds = milliseconds;
    note(files);
    page.versions.textContent = describeProgram(place, version, milliseconds);
    if (!running) say("Ready.");
  },
  working({ text }) {
    showProgress(text);
  },
  done({ before, after, width, height, milliseconds, place, wasWidth, wasHeight }) {
    const { name, type } = running;
    finished = { name };
    page.before.getContext("bitmaprenderer").transferFromImageBitmap(before);
    page.after.getContext("bitmaprenderer").transferFromImageBitmap(after);
    page.compare.style.setProperty("--ratio", width / height);
    page.compare.style.setProperty("--natural", `${width}px`);
    page.format.value = type === "image/jpeg" ? "image/jpeg" : "image/png";
    const scaled = width !== wasWidth ? `, scaled down from ${wasWidth} × ${wasHeight} so that it fits in memory` : "";
    const took = `coloured in ${seconds(milliseconds)} on ${place}`;
    page.facts.textContent = `${name}: ${width} × ${height} pixels${scaled}, ${took}`;
    moveSlider(50);
    page.result.hidden = false;
    document.body.classList.add("done");
    say(`Done. Drag across the picture${isPhone ? "" : ", or use the arrow keys,"} to compare.`);
    next();
  },
  // One photograph cannot be coloured; the next one can.
  refused({ text }) {
    fail(text);
    next();
  },
  // The worker is of no use any more.
  broken({ text, runtime: used, files = [] }) {
    note(files);
    worker?.terminate();
    worker = null;
    if (used !== "wasm" && runtime !== "wasm") {
      // Whatever went wrong, WebAssembly may do, with the same photograph.
      runtime = "wasm";
      if (used) gaveUp = "WebGPU was tried first and failed. ";
      if (running) send();
      else startWorker();
      return;
    }
    fail(text);
    next();
  },
};

function next() {
  running = waiting;
  waiting = null;
  if (running) send();
  document.body.dataset.state = running ? "busy" : "idle";
}

function send() {
  if (!worker) startWorker();
  showProgress("Getting ready");
  worker.postMessage({ file: running, maxPixels: MAX_PIXELS });
}

function colour(file) {
  page.error.hidden = true;
  waiting = file;
  if (!running) next();
}

function note(files) {
  for (const [address, bytes] of files) fileBytes.set(address, bytes);
}

function describeProgram(place, version, milliseconds) {
  note([...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map(({ name, encodedBodySize }) => [name, encodedBodySize]));
  const [model, program, all] = ["/colorizer.onnx", "/ort/", ""].map((part) =>
    [...fileBytes].reduce((sum, [address, bytes]) => sum + (address.includes(part) ? bytes : 0), 0));
  return `${gaveUp}Loaded ${megabytes(all)} in all, ready after ${seconds(milliseconds)}: the model ` +
    `${kilobytes(model)}, ONNX Runtime Web ${version} (MIT licence) ${kilobytes(program)}, this page ` +
    `${kilobytes(all - model - program)}. Runs on ${place}. Made with colorpress.`;
}

function take(files, what) {
  const picture = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (picture) colour(picture);
  else if (what) fail(`There was no picture in what you ${what}.`);
}

function say(text) {
  page.status.textContent = text;
  page.progress.hidden = true;
}

function showProgress(text, part) {
  say(text);
  page.progress.hidden = false;
  if (part === undefined) page.progress.removeAttribute("value");
  else page.progress.value = part;
}

function fail(text) {
  say("");
  page.error.textContent = text;
  page.error.hidden = false;
}

function moveSlider(percent) {
  page.slider.value = percent;
  page.slider.setAttribute("aria-valuetext", `${percent} % before, ${100 - percent} % after`);
  page.compare.style.setProperty("--share", percent);
}

async function save() {
  page.download.disabled = true;
  try {
    const type = page.format.value;
    const blob = await new Promise((resolve) => page.after.toBlob(resolve, type, 0.95));
    if (!blob) throw new Error("no memory");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${finished.name.replace(/\.[^.]*$/, "")}-coloured.${type === "image/png" ? "png" : "jpg"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch {
    fail("The picture could not be saved: the browser has too little memory for it.");
  }
  page.download.disabled = false;
}

const kilobytes = (bytes) => `${Math.round(bytes / 1000).toLocaleString("en")}\u00a0kB`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)}\u00a0MB`;
const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 0)}\u00a0s`;

page.chooser.addEventListener("submit", (event) => event.preventDefault());
page.file.addEventListener("change", () => {
  take(page.file.files);
  page.file.value = ""; // so that the same file can be chosen again
});
page.slider.addEventListener("input", () => moveSlider(page.slider.valueAsNumber));
page.download.addEventListener("click", save);
addEventListener("paste", (event) => take(event.clipboardData.files, "pasted"));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files, "dropped");
});

if (location.protocol === "file:") {
  page.chooser.hidden = true;
  fail("Browsers let a page that is opened as a file do nothing. Serve this folder instead, for example with: " +
    "python3 -m http.server 8000, and open http://localhost:8000");
} else {
  startWorker();
  showProgress("Loading the colouring program");
}
