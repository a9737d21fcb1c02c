// Made by colorpress. Copyright (c) 2026 the colorpress authors. SPDX-License-Identifier: MIT
// Decodes and colours one photograph after the other. The model does all the picture work: 8-bit pixels of any size in,
// one channel for grey, three for sRGB; 8-bit sRGB of the same size out.

// Each is of two files, and only those of the one that runs are loaded. The one for WebGPU suspends WebAssembly while
// the graphics processor works, which not all browsers that have WebGPU can do.
const RUNTIMES = {
  webgpu: { loader: "ort/ort.jspi.bundle.min.mjs", program: "ort/ort-wasm-simd-threaded.jspi.wasm.gz" },
  wasm: { loader: "ort/ort.wasm.bundle.min.mjs", program: "ort/ort-wasm-simd-threaded.wasm.gz" },
};
const MODEL = "colorizer.onnx";

const beside = (name) => new URL(name, import.meta.url).href;

class Unusable extends Error {}

let runtime = ""; // the one that is used
const opening = open();
// Told when a photograph comes, or right away by this line.
opening.catch((error) => tellBroken(error));
let queue = Promise.resolve();

addEventListener("message", ({ data }) => {
  queue = queue.then(() => colour(data));
});

async function open() {
  const started = performance.now();
  runtime = await chooseRuntime(self.name);
  const { loader, program } = RUNTIMES[runtime];
  const [ort, binary, model] = await Promise.all([
    import(beside(loader)),
    download(program, (loaded, total) => postMessage({ kind: "loading", loaded, total })).then(unpack),
    download(MODEL),
  ]);
  // Threads share memory, which browsers allow on pages that are isolated by their server's headers only.
  const threads = runtime === "wasm" && self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = binary;
  const session = await ort.InferenceSession.create(model, { executionProviders: [runtime], logSeverityLevel: 3 });
  // The browser makes the program fast while it runs: here rather than under the first photograph.
  const black = new ort.Tensor("uint8", new Uint8Array(256 * 256), [1, 256, 256, 1]);
  const { colorized } = await session.run({ image: black });
  colorized.dispose();
  const place = runtime === "webgpu" ? "the graphics processor (WebGPU)"
    : `${threads} processor thread${threads > 1 ? "s" : ""} (WebAssembly)`;
  postMessage({
    kind: "ready",
    milliseconds: performance.now() - started,
    place,
    version: ort.env.versions.web,
    files: loadedFiles(),
  });
  return { ort, session, place };
}

/** A software adapter is used on demand only: on the same processor WebAssembly is faster. */
async function chooseRuntime(wish) {
  if (wish === "wasm" || !("Suspending" in WebAssembly)) return "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && (wish === "webgpu" || !adapter.info?.isFallbackAdapter) ? "webgpu" : "wasm";
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

/** What a gzip file holds; some servers say that it is compressed, and the browser has unpacked it already. */
async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

/** The page starts another worker; after WebGPU one with WebAssembly. */
function tellBroken(error, size = "") {
  postMessage({ kind: "broken", runtime, files: loadedFiles(), text: explain(error, size) });
}

/** What this worker loaded, for the page, which cannot see it: [address, bytes as they were sent]. */
function loadedFiles() {
  return performance.getEntriesByType("resource").map(({ name, encodedBodySize }) => [name, encodedBodySize]);
}

async function colour({ file, maxPixels }) {
  let opened;
  try {
    opened = await opening;
  } catch {
    return; // said already
  }
  const { ort, session, place } = opened;
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
    const sizes = { width, height, wasWidth, wasHeight };
    postMessage({ kind: "done", before, after, ...sizes, milliseconds, place }, [before, after]);
  } catch (error) {
    // After any other error the program's memory cannot be trusted: it is started anew.
    if (error instanceof Unusable) postMessage({ kind: "refused", text: error.message });
    else tellBroken(error, size);
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
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const picture = context.getImageData(0, 0, width, height);
  canvas.width = canvas.height = 0; // now, not when memory is tidied: it is as large as the photograph
  return { picture, wasWidth, wasHeight };
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
