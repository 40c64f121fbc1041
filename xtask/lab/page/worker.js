/* Computes for the page: of each lane the newest request alone, and of several lanes the first. */
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { Model } from "./chain.js";

ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
/* Threads share memory, which hosts allow only by two headers that few of them send. */
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;

/* A slider is followed while another picture is encoded, and both go before variations. */
const LANES = ["picture", "take", "variations"];

let model, isComputing = false;
/* The newest request of each lane, with `resume`, which continues its work. */
const newest = new Map();
/* Codes of pictures that were encoded, by their name. */
const known = new Map();

const work = {
  /* Encodes a picture, and gives its reconstruction. */
  async take({ name, x0 }, step) {
    if (!known.has(name)) known.set(name, await model.encode(x0, step));
    return model.decodeAlong(known.get(name), step);
  },
  async edit({ name, edits }, step) {
    const codes = known.get(name);
    return model.decodeAlong({ ...codes, zSem: await model.edit(codes.zSem, edits) }, step);
  },
  async blend({ from, to, alpha }, step) {
    return model.decodeAlong(model.blend(known.get(from), known.get(to), alpha), step);
  },
  async variation({ name, seed }, step) {
    return model.decode({ zSem: known.get(name).zSem, xT: model.noise(seed) }, step);
  },
};

/* Continues the work of the first lane that has any, up to its next step. */
function compute() {
  const lane = LANES.find((lane) => newest.has(lane));
  if (isComputing || !model || !lane) return;
  isComputing = true;
  newest.get(lane).resume();
}

/* Ends a step; messages that have come are seen before the next one. */
function pause() {
  isComputing = false;
  setTimeout(compute);
}

async function answer(request) {
  const { id, lane, kind } = request, start = performance.now();
  /* Awaited before each call of the network. What is not the newest of its lane is never resumed. */
  const step = (done, total) => {
    self.postMessage({ id, done, total });
    pause();
    return new Promise((resume) => { request.resume = resume; });
  };
  try { self.postMessage({ id, picture: await work[kind](request, step), ms: performance.now() - start }); }
  catch (error) { self.postMessage({ id, error: error.message }); }
  if (newest.get(lane) === request) newest.delete(lane);
  pause();
}

/* A request, or without a kind the end of one. */
self.addEventListener("message", ({ data: request }) => {
  const { id, lane, kind } = request;
  if (kind) newest.set(lane, Object.assign(request, { resume: () => answer(request) }));
  else if (newest.get(lane)?.id === id) newest.delete(lane);
  compute();
});

try {
  model = await Model.load(ort, new URL("model/", import.meta.url), (part) => self.postMessage({ part }));
  self.postMessage({ manifest: model.manifest, threads: ort.env.wasm.numThreads });
  compute();
} catch (error) { self.postMessage({ error: error.message }); }
