/* Computes for the page: one request at a time, and of those that wait the newest alone. */
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { Model } from "./chain.js";

ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
/* Threads share memory, which hosts allow only by two headers that few of them send. */
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;

class Replaced extends Error {}

let model, waiting = null, working = false;
/* Codes of pictures that were encoded, by their name. */
const known = new Map();

const work = {
  async encode({ name, x0 }, step) {
    if (!known.has(name)) known.set(name, await model.encode(x0, step));
    return {};
  },
  async edit({ name, edits }, step) {
    const codes = known.get(name);
    return { picture: await model.decodeAlong({ ...codes, zSem: await model.edit(codes.zSem, edits) }, step) };
  },
  async blend({ from, to, alpha }, step) {
    return { picture: await model.decodeAlong(model.blend(known.get(from), known.get(to), alpha), step) };
  },
  async variation({ name, seed }, step) {
    return { picture: await model.decode({ zSem: known.get(name).zSem, xT: model.noise(seed) }, step) };
  },
};

async function go() {
  working = true;
  while (waiting) {
    const { id, kind, ...request } = waiting;
    waiting = null;
    const start = performance.now();
    const step = async (done, total) => {
      self.postMessage({ id, done, total });
      /* Messages that have come are seen now. */
      await new Promise((resolve) => setTimeout(resolve));
      if (waiting) throw new Replaced();
    };
    try { self.postMessage({ id, ...await work[kind](request, step), ms: performance.now() - start }); }
    catch (error) { self.postMessage({ id, error: error.message, replaced: error instanceof Replaced }); }
  }
  working = false;
}

self.addEventListener("message", ({ data }) => {
  if (waiting) self.postMessage({ id: waiting.id, replaced: true, error: "replaced" });
  waiting = data;
  if (!working && model) go();
});

try {
  model = await Model.load(ort, new URL("model/", import.meta.url), (part) => self.postMessage({ part }));
  self.postMessage({ manifest: model.manifest, threads: ort.env.wasm.numThreads });
  if (waiting) go();
} catch (error) { self.postMessage({ error: error.message }); }
