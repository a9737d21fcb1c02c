// Made by colorpress. Copyright (c) 2026 the colorpress authors. SPDX-License-Identifier: MIT
// Decodes and colours one photograph after the other. The model does all the picture work: 8-bit pixels of any size in,
// one channel for grey, three for sRGB; 8-bit sRGB of the same size out.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";

const beside = (name) => new URL(name, import.meta.url).href;

class Unusable extends Error {}

const opening = open();
// Told when a photograph comes, or right away by this line.
opening.catch((error) => postMessage({ kind: "broken", text: explain(error) }));
let queue = Promise.resolve();

addEventListener("message", ({ data }) => {
  queue = queue.then(() => colour(data));
});

async function open() {
  const started = performance.now();
  // Threads share memory, which browsers allow on pages that are isolated by their server's headers only.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.logLevel = "error";
  const [program, model] = await Promise.all([
    download("ort/ort-wasm-simd-threaded.wasm", (loaded, total) => postMessage({ kind: "loading", loaded, total })),
    download("colorizer.onnx"),
  ]);
  ort.env.wasm.wasmBinary = program;
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  // The browser makes the program fast while it runs: here rather than under the first photograph.
  const { colorized } = await session.run({ image: new ort.Tensor("uint8", new Uint8Array(256 * 256), [1, 256, 256, 1]) });
  colorized.dispose();
  const threads = ort.env.wasm.numThreads;
  postMessage({
    kind: "ready",
    milliseconds: performance.now() - started,
    versions: `Model: ${Math.round(model.byteLength / 1000)} kB. Runs in ONNX Runtime Web ${ort.env.versions.web} ` +
      `(MIT licence) on ${threads} processor thread${threads > 1 ? "s" : ""}. Made with colorpress.`,
  });
  return session;
}

async function download(name, report = () => {}) {
  const answer = await fetch(beside(name));
  if (!answer.ok) throw new Unusable(`The file ${name} is missing on the server (${answer.status}).`);
  // Of a compressed answer the header counts other bytes than those that arrive here.
  const total = answer.headers.get("content-encoding") ? 0 : Number(answer.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.byteLength;
    report(loaded, total);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function colour({ file, maxPixels }) {
  let session;
  try {
    session = await opening;
  } catch {
    return; // said already
  }
  let size = "";
  try {
    postMessage({ kind: "working", text: "Reading the photograph" });
    const { picture, wasWidth, wasHeight } = await decode(file, maxPixels);
    const { width, height } = picture;
    size = ` of ${width} × ${height} pixels`;
    const before = await createImageBitmap(picture);
    postMessage({ kind: "working", text: "Colouring the photograph" });
    const started = performance.now();
    const channels = isGrey(picture.data) ? 1 : 3;
    const image = new ort.Tensor("uint8", dropChannels(picture.data, channels), [1, height, width, channels]);
    const { colorized } = await session.run({ image });
    putColours(picture.data, colorized.data);
    colorized.dispose();
    const milliseconds = performance.now() - started;
    const after = await createImageBitmap(picture);
    postMessage({ kind: "done", before, after, width, height, wasWidth, wasHeight, milliseconds }, [before, after]);
  } catch (error) {
    // After any other error the program's memory cannot be trusted: it is started anew.
    if (error instanceof Unusable) postMessage({ kind: "refused", text: error.message });
    else postMessage({ kind: "broken", text: explain(error, size) });
  }
}

/** RGBA pixels of a picture file, upright by its EXIF orientation, in sRGB, and the size it had in the file. */
async function decode(file, maxPixels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Unusable(`This browser cannot read “${file.name}” as a picture. JPEG, PNG and WebP files work.`);
  }
  const { width: wasWidth, height: wasHeight } = bitmap;
  const scale = Math.min(1, Math.sqrt(maxPixels / (wasWidth * wasHeight)));
  const [width, height] = [wasWidth, wasHeight].map((side) => Math.max(1, Math.floor(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { picture: context.getImageData(0, 0, width, height), wasWidth, wasHeight };
}

function isGrey(rgba) {
  for (let i = 0; i < rgba.length; i += 4) {
    if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2]) return false;
  }
  return true;
}

function dropChannels(rgba, channels) {
  const pixels = new Uint8Array((rgba.length / 4) * channels);
  if (channels === 1) {
    for (let from = 0, to = 0; from < rgba.length; from += 4) pixels[to++] = rgba[from];
  } else {
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
      pixels[to++] = rgba[from];
      pixels[to++] = rgba[from + 1];
      pixels[to++] = rgba[from + 2];
    }
  }
  return pixels;
}

/** Write RGB over RGBA; what was transparent stays so. */
function putColours(rgba, rgb) {
  for (let to = 0, from = 0; to < rgba.length; to += 4) {
    rgba[to] = rgb[from++];
    rgba[to + 1] = rgb[from++];
    rgba[to + 2] = rgb[from++];
  }
}

function explain(error, size = "") {
  if (error instanceof Unusable) return error.message;
  const reason = String(error?.message ?? error);
  if (error instanceof RangeError || /memory|bad_alloc|allocation/i.test(reason)) {
    return `The browser has too little memory for a photograph${size}. Try a smaller one.`;
  }
  if (error instanceof TypeError && /fetch|network|load/i.test(reason)) {
    return "The colouring program could not be loaded: the server cannot be reached.";
  }
  return `The photograph could not be coloured. The browser said: ${reason.slice(0, 200)}`;
}
