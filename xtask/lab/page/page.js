import { fetched } from "./chain.js";

const $ = (id) => document.getElementById(id);
/* The pictures A and B are { name, blob }. */
const state = { manifest: null, a: null, b: null, edits: {}, shown: 0, uploads: 0, asked: 0 };
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const asked = new Map();

function say(text, isError = false) { $("said").textContent = text; $("said").className = isError ? "error" : ""; }
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/* Asks the worker for work of a lane, which ends when the lane's signal says so. */
function ask(signal, lane, kind, request) {
  signal.throwIfAborted();
  const id = (state.asked += 1);
  return new Promise((resolve, reject) => {
    asked.set(id, { resolve, reject });
    signal.addEventListener("abort", () => {
      if (asked.delete(id)) worker.postMessage({ id, lane });
      reject(signal.reason);
    }, { once: true });
    worker.postMessage({ id, lane, kind, ...request });
  });
}

/* Runs the newest work of a lane alone: older work of it is ended. */
const running = new Map();
function note(lane, mine) {
  if (mine) running.set(lane, mine); else running.delete(lane);
  document.body.setAttribute("aria-busy", running.size > 0);
  if (running.size === 0) $("progress").value = 0;
}
function end(lane) { running.get(lane)?.abort(); note(lane, null); }
async function newest(lane, work) {
  end(lane);
  const mine = new AbortController();
  note(lane, mine);
  try { await work(mine.signal); }
  catch (error) { if (!mine.signal.aborted) say(sentence(error.message), true); }
  finally { if (running.get(lane) === mine) note(lane, null); }
}

worker.addEventListener("message", ({ data }) => {
  if (data.manifest) { begin(data.manifest).catch((error) => say(sentence(error.message), true)); return; }
  if (data.part) { say(`Loaded: ${data.part.replaceAll("_", " ")}.`); return; }
  if (!data.id) { say(sentence(data.error), true); return; }
  const one = asked.get(data.id);
  if (!one) return;
  if (data.total) { $("progress").value = data.done / data.total; return; }
  asked.delete(data.id);
  if (data.error) one.reject(new Error(data.error)); else one.resolve(data);
});
worker.addEventListener("error", ({ message }) => say(sentence(message || "the worker cannot be started"), true));

/* The middle square of a picture at the model's size as x_0, planes in [-1, 1]; one channel is the luma. */
function tensorOf(image) {
  const [channels, size] = state.manifest.image_shape;
  const canvas = new OffscreenCanvas(size, size), context = canvas.getContext("2d");
  const side = Math.min(image.width, image.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, size, size);
  const { data } = context.getImageData(0, 0, size, size), plane = size * size;
  const value = (c, i) => channels === 1 ? 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2] : data[4 * i + c];
  return Float32Array.from({ length: channels * plane }, (_, at) => value(Math.floor(at / plane), at % plane) / 127.5 - 1);
}

/* Planes in [-1, 1] to a PNG. */
function pngOf(x) {
  const [channels, size] = state.manifest.image_shape, plane = size * size;
  const pixels = new ImageData(size, size);
  for (let i = 0; i < plane; i += 1) {
    for (let c = 0; c < 3; c += 1) pixels.data[4 * i + c] = Math.round((x[(c % channels) * plane + i] + 1) * 127.5);
    pixels.data[4 * i + 3] = 255;
  }
  const canvas = new OffscreenCanvas(size, size);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.convertToBlob();
}

/* Shows a picture in an image, and lets go of the one before. */
function put(image, blob) { URL.revokeObjectURL(image.src); image.src = URL.createObjectURL(blob); }
function show(blob) {
  put($("after"), blob);
  $("save").disabled = false;
  document.body.dataset.shown = (state.shown += 1);
}

/* The picture is one edit, or one blend, or one variation: the controls of the others go back to their beginning. */
function clearEdits() {
  state.edits = {};
  for (const input of document.querySelectorAll("#sliders input")) { input.value = 0; input.dispatchEvent(new Event("reset")); }
}
function setAlpha(alpha) { $("alpha").value = alpha; $("alpha-value").textContent = alpha; }
function clearVariations() {
  for (const image of document.querySelectorAll("#variations img")) URL.revokeObjectURL(image.src);
  $("variations").replaceChildren();
}

/* Makes a picture A. Nothing of the page changes before all is there, and then all of it. */
const take = (name, get) => newest("take", async (signal) => {
  say("Encoding the picture.");
  const blob = await get();
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const x0 = tensorOf(image);
  image.close();
  const { picture } = await ask(signal, "take", "take", { name, x0 });
  const reconstruction = await pngOf(picture);
  signal.throwIfAborted();
  for (const lane of ["picture", "variations"]) end(lane);
  state.a = { name, blob };
  put($("before"), blob);
  show(reconstruction);
  clearEdits(); setAlpha(0); clearVariations();
  for (const input of document.querySelectorAll("#sliders input")) input.disabled = false;
  for (const id of ["reset", "keep", "vary"]) $(id).disabled = false;
  $("alpha").disabled = !state.b;
  document.body.dataset.taken = name;
  say("Drag a slider.");
});

/* Draws a picture of A, in place of an older one. */
const draw = (kind, request) => newest("picture", async (signal) => {
  const { picture, ms } = await ask(signal, "picture", kind, request);
  const png = await pngOf(picture);
  signal.throwIfAborted();
  document.body.dataset.ms = ms;
  show(png);
  say(`${(ms / 1000).toFixed(2)} s`);
});
function edit() { setAlpha(0); return draw("edit", { name: state.a.name, edits: state.edits }); }

function slider({ name, full_strength: full }) {
  const row = document.createElement("div");
  row.className = "slider";
  const reach = full ?? 0.3, id = `slider-${name.replace(/\W/g, "_")}`;
  /* The middle of the slider is no multiple of its step. */
  const round = (value) => Math.abs(value) < reach / 100 ? 0 : Number(value.toPrecision(3));
  row.innerHTML = `<label></label><input type="range" disabled><output>0</output>`;
  const [label, input, output] = row.children;
  label.textContent = name.replaceAll("_", " "); label.htmlFor = input.id = id;
  Object.assign(input, { min: -1.5 * reach, max: 1.5 * reach, step: reach / 50, value: 0 });
  const note = () => {
    const strength = round(Number(input.value));
    output.textContent = strength === 0 ? "0" : `${strength > 0 ? "+" : ""}${Math.round(100 * strength / reach)}%`;
    return strength;
  };
  input.addEventListener("reset", note);
  input.addEventListener("input", () => {
    const strength = note(), { [name]: _, ...others } = state.edits;
    state.edits = strength === 0 ? others : { ...others, [name]: strength };
    edit();
  });
  return row;
}

function thumbnail(src, title, action) {
  const button = document.createElement("button"), image = document.createElement("img");
  Object.assign(image, { src, alt: title }); button.title = title; button.append(image);
  button.addEventListener("click", action);
  return button;
}

async function begin(manifest) {
  state.manifest = manifest;
  const { model, faces } = await (await fetched("page.json", import.meta.url)).json();
  $("name").textContent = model;
  $("sliders").append(...manifest.attributes.map(slider));
  if (manifest.attributes.length === 0) $("sliders").textContent = "The model has no attributes to edit.";
  const takeFace = (file) => take(file, async () => (await fetched(file, import.meta.url)).blob());
  $("faces").append(...faces.map((file) => thumbnail(file, file, () => takeFace(file))));
  say(faces.length ? "Choose a face, or drop a picture." : "Drop a picture.");
  document.body.dataset.ready = "true";
}

function upload(file) {
  if (!state.manifest) return say("The model is not loaded yet.", true);
  return take(`upload ${state.uploads += 1}`, () => file);
}
$("file").addEventListener("change", () => { if ($("file").files[0]) upload($("file").files[0]); $("file").value = ""; });
/* Anywhere on the page: a browser would show a file that is dropped beside the frame in place of the page. */
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault(); $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => { const [picture] = event.clipboardData.files; if (picture) upload(picture); });
$("cut").addEventListener("input", () => document.body.style.setProperty("--cut", `${$("cut").value}%`));
$("reset").addEventListener("click", () => { clearEdits(); edit(); });
$("save").addEventListener("click", () => Object.assign(document.createElement("a"), { href: $("after").src, download: "result.png" }).click());
$("keep").addEventListener("click", () => {
  state.b = state.a;
  put($("other"), state.b.blob); $("other").alt = "B"; $("other").hidden = false;
  $("alpha").disabled = false;
  say("This picture is B; choose another one as A, and blend.");
});
$("alpha").addEventListener("input", () => {
  const alpha = Number($("alpha").value);
  clearEdits(); setAlpha(alpha);
  draw("blend", { from: state.a.name, to: state.b.name, alpha });
});
$("vary").addEventListener("click", () => {
  const { name } = state.a, first = $("seed").valueAsNumber;
  if (!$("seed").checkValidity() || Number.isNaN(first)) return say("A seed is a whole number from 0.", true);
  newest("variations", async (signal) => {
    clearVariations();
    for (let seed = first; seed < first + 8; seed += 1) {
      const { picture } = await ask(signal, "variations", "variation", { name, seed });
      const png = await pngOf(picture);
      signal.throwIfAborted();
      const choose = () => newest("picture", async () => { clearEdits(); setAlpha(0); show(png); });
      $("variations").append(thumbnail(URL.createObjectURL(png), `Seed ${seed}`, choose));
    }
    say("Choose a variation.");
  });
});
