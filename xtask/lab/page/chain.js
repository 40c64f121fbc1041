/* The networks of an export, and the chains that its manifest describes: codes are { zSem, xT, residual }. */

/* Adds weighted arrays: sums([2, x], [-1, y]) is 2 x - y. */
function sums(...terms) {
  const sum = new Float32Array(terms[0][1].length);
  for (const [weight, values] of terms) for (let i = 0; i < sum.length; i += 1) sum[i] += weight * values[i];
  return sum;
}

/* Mixes the bits of a number of 32 bits, as the generator SplitMix32 does. */
function mixed(number) {
  let z = Math.imul(number ^ (number >>> 16), 0x21f0aaad);
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
  return (z ^ (z >>> 15)) >>> 0;
}

/* Gets a file; an answer that is none becomes an error with its name. */
export async function fetched(name, folder) {
  const response = await fetch(new URL(name, folder)).catch(() => { throw new Error(`${name} cannot be loaded: no answer`); });
  if (!response.ok) throw new Error(`${name} cannot be loaded: status ${response.status}`);
  return response;
}

const clamped = (values) => values.map((value) => Math.min(1, Math.max(-1, value)));

export class Model {
  /* Loads manifest and graphs from a folder; `loaded` is called with each part. */
  static async load(ort, folder, loaded = () => {}) {
    const manifest = await (await fetched("manifest.json", folder)).json();
    const graphs = {};
    for (const [part, { file }] of Object.entries(manifest.graphs)) {
      const response = await fetched(file, folder);
      graphs[part] = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
      loaded(part);
    }
    return new Model(ort, manifest, graphs);
  }

  constructor(ort, manifest, graphs) {
    Object.assign(this, { ort, manifest, graphs, calls: 0 });
    /* Signal and noise of the nodes: the clean picture, then the timesteps of the chain. */
    const levels = [1, ...manifest.diffusion.chain.alpha_bars];
    this.levels = levels.map((alphaBar) => ({ alphaBar, alpha: Math.sqrt(alphaBar), sigma: Math.sqrt(1 - alphaBar) }));
  }

  get numSteps() { return this.levels.length - 1; }

  /* Runs a graph on one picture or code. */
  async run(part, values) {
    const { inputs, outputs } = this.manifest.graphs[part];
    const feeds = inputs.map(({ name, shape }) => [name, new this.ort.Tensor("float32", values[name], [1, ...shape.slice(1)])]);
    return (await this.graphs[part].run(Object.fromEntries(feeds)))[outputs[0].name].data;
  }

  /* The noise that the network predicts in a state of a node. */
  async eps(node, x, zSem) {
    const { chain, prediction } = this.manifest.diffusion;
    const { alphaBar, alpha, sigma } = this.levels[node];
    const timestep = new Float32Array([chain.timesteps[node - 1]]);
    const predicted = await this.run("decoder_step", { x_t: x, timestep, z_sem: zSem });
    this.calls += 1;
    if (prediction === "v") return sums([alpha, predicted], [sigma, x]);
    if (prediction === "x_0") return sums([Math.sqrt(1 / alphaBar) / Math.sqrt(1 / alphaBar - 1), x], [-1 / Math.sqrt(1 / alphaBar - 1), predicted]);
    return predicted;
  }

  /* A step of DDIM from one node to another. */
  ddim(x, eps, from, to) {
    const scale = this.levels[to].alpha / this.levels[from].alpha;
    return sums([scale, x], [this.levels[to].sigma - scale * this.levels[from].sigma, eps]);
  }

  /* Codes of a picture, along the exact chain. `step` is awaited before each call of the network, and may throw. */
  async encode(x0, step = () => {}) {
    const zSem = await this.run("encoder", { x_0: x0 });
    const last = this.numSteps;
    await step(0, last + 1);
    let [before, here] = [x0, this.ddim(x0, await this.eps(1, x0, zSem), 0, 1)];
    for (let node = 1; node < last; node += 1) {
      await step(node, last + 1);
      const update = this.manifest.diffusion.chain.exact.updates[node - 1];
      const eps = await this.eps(node, here, zSem);
      [before, here] = [here, sums([update.before, before], [update.here, here], [update.eps, eps])];
    }
    await step(last, last + 1);
    const eps = await this.eps(last, here, zSem);
    return { zSem, xT: here, residual: sums([1, before], [-1, this.ddim(here, eps, last, last - 1)]) };
  }

  /* The picture of codes that have a residual, along the exact chain. */
  async decodeAlong({ zSem, xT, residual }, step = () => {}) {
    const last = this.numSteps;
    await step(0, last);
    let [after, here] = [xT, sums([1, this.ddim(xT, await this.eps(last, xT, zSem), last, last - 1)], [1, residual])];
    for (let node = last - 1; node > 0; node -= 1) {
      await step(last - node, last);
      const update = this.manifest.diffusion.chain.exact.updates[node - 1];
      const eps = await this.eps(node, here, zSem);
      const weight = 1 / update.before;
      [after, here] = [here, sums([weight, after], [-update.here * weight, here], [-update.eps * weight, eps])];
    }
    return clamped(here);
  }

  /* The picture of a z_sem and random noise, by DDIM. */
  async decode({ zSem, xT }, step = () => {}) {
    let x = xT;
    for (let node = this.numSteps; node > 0; node -= 1) {
      await step(this.numSteps - node, this.numSteps);
      const { alphaBar } = this.levels[node];
      const [scale, noise] = [Math.sqrt(1 / alphaBar), Math.sqrt(1 / alphaBar - 1)];
      const x0 = clamped(sums([scale, x], [-noise, await this.eps(node, x, zSem)]));
      const eps = sums([scale / noise, x], [-1 / noise, x0]);
      x = sums([this.levels[node - 1].alpha, x0], [this.levels[node - 1].sigma, eps]);
    }
    return x;
  }

  /* z_sem after edits, by the strengths of attributes. */
  async edit(zSem, edits) {
    const strengths = this.manifest.attributes.map(({ name }) => edits[name] ?? 0);
    if (strengths.every((strength) => strength === 0)) return zSem;
    return this.run("directions", { z_sem: zSem, strengths: new Float32Array(strengths) });
  }

  /* Codes between two: x_T on an arc, the rest on a straight line. */
  blend(from, to, alpha) {
    const line = (a, b) => sums([1 - alpha, a], [alpha, b]);
    const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    const arc = (a, b) => {
      const theta = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))));
      const sine = Math.sin(theta);
      return sine < 1e-6 ? line(a, b) : sums([Math.sin((1 - alpha) * theta) / sine, a], [Math.sin(alpha * theta) / sine, b]);
    };
    return { zSem: line(from.zSem, to.zSem), xT: arc(from.xT, to.xT), residual: line(from.residual, to.residual) };
  }

  /* Standard normal noise of a seed, by Box and Muller. The uniform numbers are those of a counter, mixed twice with the key of
     the seed between: added to the counter, it would make the noise of one seed a shifted copy of another's. */
  noise(seed) {
    const key = mixed(seed + 0x9e3779b9);
    let counter = 0;
    const uniform = () => (mixed(mixed(counter += 1) ^ key) + 0.5) / 2 ** 32;
    const count = this.manifest.x_terminal_shape.reduce((product, length) => product * length, 1);
    return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
  }
}
