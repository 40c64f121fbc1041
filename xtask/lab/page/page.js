const $ = (id) => document.getElementById(id);
const state = { manifest: null, name: null, other: null, edits: {}, urls: 0 };
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const asked = new Map();

function say(text, isError = false) { $("said").textContent = text; $("said").className = isError ? "error" : ""; }

/* Asks the worker; the newest request replaces those that wait or run. */
function ask(kind, request) {
  const id = asked.size + 1 + Math.random();
  return new Promise((resolve, reject) => {
    asked.set(id, { resolve, reject });
    worker.postMessage({ id, kind, ...request });
  });
}

/* Runs work whose requests may be replaced, which is no error. */
async function newest(work) {
  try { await work(); } catch (error) { if (!error.replaced) say(error.message, true); }
}

worker.addEventListener("message", ({ data }) => {
  if (data.manifest) { begin(data.manifest); return; }
  if (data.part) { say(`Loaded: ${data.part.replaceAll("_", " ")}.`); return; }
  if (data.total) { $("progress").value = data.done / data.total; return; }
  const one = asked.get(data.id);
  asked.delete(data.id);
  $("progress").value = 0;
  if (!one) say(data.error, true);
  else if (data.error) one.reject(Object.assign(new Error(data.error), { replaced: data.replaced }));
  else one.resolve(data);
});
worker.addEventListener("error", ({ message }) => say(message || "The worker cannot be started.", true));

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

function showUrl(url) { $("after").src = url; $("save").disabled = false; }
async function show({ picture, ms }) {
  showUrl(URL.createObjectURL(await pngOf(picture)));
  document.body.dataset.ms = ms;
  document.body.dataset.shown = (state.urls += 1);
}

/* Encodes a picture and shows its reconstruction. */
const take = (name, blob) => newest(async () => {
  say("Encoding the picture.");
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  await ask("encode", { name, x0: tensorOf(image) });
  Object.assign(state, { name, edits: {} });
  $("before").src = URL.createObjectURL(blob);
  for (const input of document.querySelectorAll("#sliders input")) { input.disabled = false; input.value = 0; input.dispatchEvent(new Event("reset")); }
  for (const id of ["reset", "keep", "vary"]) $(id).disabled = false;
  $("alpha").disabled = !state.other;
  $("alpha").value = 0; $("alpha-value").textContent = "0";
  $("variations").replaceChildren();
  await show(await ask("edit", { name, edits: {} }));
  document.body.dataset.taken = name;
  say("Drag a slider.");
});

const edit = () => newest(async () => {
  const shown = await ask("edit", { name: state.name, edits: state.edits });
  await show(shown);
  say(`${(shown.ms / 1000).toFixed(2)} s`);
});

function slider({ name, full_strength: full }) {
  const row = document.createElement("div");
  row.className = "slider";
  const reach = full ?? 0.3, id = `slider-${name.replace(/\W/g, "_")}`;
  /* The middle of the slider is no multiple of its step. */
  const round = (value) => Math.abs(value) < reach / 100 ? 0 : Number(value.toPrecision(3));
  row.innerHTML = `<label></label><input type="range" disabled><output>0</output><datalist></datalist>`;
  const [label, input, output, list] = row.children;
  label.textContent = name.replaceAll("_", " "); label.htmlFor = input.id = id;
  Object.assign(input, { min: -1.5 * reach, max: 1.5 * reach, step: reach / 50, value: 0 });
  list.id = `${id}-marks`; input.setAttribute("list", list.id);
  for (const mark of [-reach, 0, reach]) list.append(Object.assign(document.createElement("option"), { value: mark }));
  const note = () => {
    const strength = round(Number(input.value));
    output.textContent = strength === 0 ? "0" : `${strength > 0 ? "+" : ""}${Math.round(100 * strength / reach)}%`;
    return strength;
  };
  input.addEventListener("reset", note);
  input.addEventListener("input", () => {
    const strength = note();
    if (strength === 0) delete state.edits[name]; else state.edits[name] = strength;
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
  const { model, faces } = await (await fetch(new URL("page.json", import.meta.url))).json();
  $("name").textContent = model;
  $("sliders").append(...manifest.attributes.map(slider));
  if (manifest.attributes.length === 0) $("sliders").textContent = "The model has no attributes to edit.";
  $("faces").append(...faces.map((file) => thumbnail(file, file, async () => take(file, await (await fetch(file)).blob()))));
  say(faces.length ? "Choose a face, or drop a picture." : "Drop a picture.");
  document.body.dataset.ready = "true";
}

let uploads = 0;
const upload = (file) => take(`upload ${uploads += 1}`, file);
$("file").addEventListener("change", () => { if ($("file").files[0]) upload($("file").files[0]); $("file").value = ""; });
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault(); $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => { const [picture] = event.clipboardData.files; if (picture) upload(picture); });
$("cut").addEventListener("input", () => document.body.style.setProperty("--cut", `${$("cut").value}%`));
$("reset").addEventListener("click", () => {
  state.edits = {};
  for (const input of document.querySelectorAll("#sliders input")) { input.value = 0; input.dispatchEvent(new Event("reset")); }
  edit();
});
$("save").addEventListener("click", () => Object.assign(document.createElement("a"), { href: $("after").src, download: "result.png" }).click());
$("keep").addEventListener("click", () => {
  state.other = state.name;
  $("other").src = $("before").src; $("other").alt = "B"; $("other").hidden = false;
  $("alpha").disabled = false;
  say("This picture is B; choose another one as A, and blend.");
});
$("alpha").addEventListener("input", () => newest(async () => {
  const alpha = Number($("alpha").value);
  $("alpha-value").textContent = alpha;
  await show(await ask("blend", { from: state.name, to: state.other, alpha }));
}));
$("vary").addEventListener("click", () => newest(async () => {
  $("variations").replaceChildren();
  const first = Number($("seed").value);
  for (let seed = first; seed < first + 8; seed += 1) {
    const { picture } = await ask("variation", { name: state.name, seed });
    const url = URL.createObjectURL(await pngOf(picture));
    $("variations").append(thumbnail(url, `Seed ${seed}`, () => showUrl(url)));
  }
}));
