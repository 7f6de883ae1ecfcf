// The engine of the page "Try it": VGG-16 for one 32 x 32 image at a time, with bounds or Purifier's units in it.
// It reads the committed safetensors files as they are, and needs nothing but the language.
const Engine = (() => {
  "use strict";
  const SIDE = 32;
  const BLOCKS = [2, 2, 3, 3, 3]; // units of VGG-16, block by block
  const EPSILON = 1e-5; // BatchNorm's

  // IEEE half precision: sign, 5 bits of exponent, 10 of fraction
  const half = (bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  };

  // A safetensors file in base64: {tensors: {name: {shape, values}}, notes: its header's words}
  function parse(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
      if (name === "__metadata__" || dtype === "I64") continue; // counters, which nothing here reads
      const content = bytes.slice(8 + length + offsets[0], 8 + length + offsets[1]).buffer;
      const values = dtype === "F16" ? Float32Array.from(new Uint16Array(content), half) : new Float32Array(content);
      tensors[name] = { shape, values };
    }
    return { tensors, notes: header.__metadata__ ?? {} };
  }

  // A layer's weights and biases with the BatchNorm behind it folded in
  function folded(tensors, layer, norm) {
    const weights = tensors[`${layer}.weight`].values;
    const biases = tensors[`${layer}.bias`].values;
    const [scale, shift, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
      (part) => tensors[`${norm}.${part}`].values,
    );
    const width = weights.length / biases.length;
    const factor = variance.map((value, i) => scale[i] / Math.sqrt(value + EPSILON));
    return {
      weights: weights.map((value, i) => value * factor[Math.floor(i / width)]),
      biases: biases.map((value, i) => (value - mean[i]) * factor[i] + shift[i]),
    };
  }

  // The network of some tensors, with the bounds and the heads that are among them: a bound sits around a ReLU
  function network(tensors) {
    const units = [];
    BLOCKS.forEach((count, block) => {
      for (let i = 0; i < count; i++) {
        const name = `block${block + 1}.${i}`;
        const site = tensors[`${name}.site.0.weight`] ? `${name}.site` : name;
        const head = tensors[`${name}.head.weight`];
        units.push({
          name,
          ...folded(tensors, `${site}.0`, `${site}.1`),
          upper: tensors[`${name}.2.upper`]?.values,
          head: head && { weights: head.values, biases: tensors[`${name}.head.bias`].values },
          pooled: i === count - 1,
        });
      }
    });
    const hidden = [0, 1].map((i) => folded(tensors, `classifier.${i}.0`, `classifier.${i}.1`));
    const last = { weights: tensors["classifier.2.weight"].values, biases: tensors["classifier.2.bias"].values };
    return { units, hidden, last };
  }

  // (channels, side, side) with a frame of zeros
  function padded(x, channels, side) {
    const wide = side + 2;
    const y = new Float32Array(channels * wide * wide);
    for (let c = 0; c < channels; c++) {
      for (let i = 0; i < side; i++) {
        const from = (c * side + i) * side;
        y.set(x.subarray(from, from + side), (c * wide + i + 1) * wide + 1);
      }
    }
    return y;
  }

  // A 3 x 3 convolution with padding 1, then ReLU
  function convolution(x, side, { weights, biases }) {
    const area = side * side;
    const wide = side + 2;
    const channels = x.length / area;
    const framed = padded(x, channels, side);
    const y = new Float32Array(biases.length * area);
    const sums = new Float32Array(area);
    for (let out = 0; out < biases.length; out++) {
      sums.fill(biases[out]);
      for (let c = 0; c < channels; c++) {
        const at = (out * channels + c) * 9; // by index: taking an array apart costs more than the small maps do
        const a = weights[at], b = weights[at + 1], d = weights[at + 2];
        const e = weights[at + 3], f = weights[at + 4], g = weights[at + 5];
        const h = weights[at + 6], k = weights[at + 7], l = weights[at + 8];
        for (let i = 0, t = 0; i < side; i++) {
          let u = (c * wide + i) * wide; // the three rows that the window covers
          let v = u + wide;
          let w = v + wide;
          for (let j = 0; j < side; j++, t++, u++, v++, w++) {
            sums[t] += a * framed[u] + b * framed[u + 1] + d * framed[u + 2] +
              e * framed[v] + f * framed[v + 1] + g * framed[v + 2] +
              h * framed[w] + k * framed[w + 1] + l * framed[w + 2];
          }
        }
      }
      for (let t = 0; t < area; t++) y[out * area + t] = Math.max(0, sums[t]);
    }
    return y;
  }

  // The largest of every 2 x 2 places
  function pooled(x, side) {
    const small = side / 2;
    const y = new Float32Array(x.length / 4);
    for (let row = 0, t = 0; row < y.length / small; row++) {
      for (let j = 0; j < small; j++, t++) {
        const u = 2 * row * side + 2 * j;
        y[t] = Math.max(x[u], x[u + 1], x[u + side], x[u + side + 1]);
      }
    }
    return y;
  }

  function linear(x, { weights, biases }) {
    return biases.map((bias, row) => {
      let sum = bias;
      for (let i = 0; i < x.length; i++) sum += weights[row * x.length + i] * x[i];
      return sum;
    });
  }

  // The mean of each channel
  function means(x, area) {
    const y = new Float32Array(x.length / area);
    for (let i = 0; i < x.length; i++) y[Math.floor(i / area)] += x[i] / area;
    return y;
  }

  const largest = (x) => x.reduce((best, value, i) => (value > x[best] ? i : best), 0);

  // The feature map x under the mask that the head picks, or that of class `mask`; and what the head picked
  function masked(x, area, head, mask) {
    const perChannel = head.weights.length / head.biases.length < x.length;
    const view = perChannel ? means(x, area) : x;
    const choice = largest(linear(view, head));
    const row = (mask ?? choice) * view.length;
    return { choice, y: x.map((value, i) => value * head.weights[row + (perChannel ? Math.floor(i / area) : i)]) };
  }

  // image: Float32Array (3, 32, 32) from 0 to 1; mask: the class whose mask every Purifier unit takes, or null.
  // units: what each gave, before (`signal`) and after (`output`) a bound or a mask; heads: the classes they picked.
  function run(net, image, mask = null) {
    let x = image;
    let side = SIDE;
    const units = [];
    const heads = [];
    for (const unit of net.units) {
      const signal = convolution(x, side, unit);
      x = signal;
      if (unit.upper) x = x.map((value, i) => Math.min(value, unit.upper[i]));
      if (unit.head) {
        const { choice, y } = masked(x, side * side, unit.head, mask);
        heads.push(choice);
        x = y;
      }
      units.push({ name: unit.name, signal, output: x, area: side * side });
      if (unit.pooled) {
        x = pooled(x, side);
        side /= 2;
      }
    }
    for (const layer of net.hidden) x = linear(x, layer).map((value) => Math.max(0, value));
    const logits = linear(x, net.last);
    const top = Math.max(...logits);
    const powers = Array.from(logits, (value) => Math.exp(value - top));
    const total = powers.reduce((sum, value) => sum + value, 0);
    return { probabilities: powers.map((value) => value / total), units, heads };
  }

  // The share of a signal that lies above what clean images reach at the same place
  function excess(signal, ceiling) {
    let above = 0;
    let total = 0;
    for (let i = 0; i < signal.length; i++) {
      total += signal[i];
      above += Math.max(0, signal[i] - ceiling[i]);
    }
    return total ? above / total : 0;
  }

  // A trigger {keep, add} on pixels (3, 32, 32) from 0 to 255: moved by `rows` and `columns`, at `opacity`, and only
  // those quarters of it that `quarters` names with true (upper left, upper right, lower left, lower right)
  function stamped(pixels, trigger, { quarters, opacity, rows, columns }) {
    const y = Float32Array.from(pixels);
    for (let c = 0; c < 3; c++) {
      for (let i = Math.max(0, rows); i < SIDE + Math.min(0, rows); i++) {
        for (let j = Math.max(0, columns); j < SIDE + Math.min(0, columns); j++) {
          const quarter = 2 * (i - rows >= SIDE / 2) + (j - columns >= SIDE / 2);
          if (!quarters[quarter]) continue;
          const from = (c * SIDE + i - rows) * SIDE + j - columns;
          const at = (c * SIDE + i) * SIDE + j;
          const full = trigger.keep[from] * y[at] + trigger.add[from];
          y[at] = Math.min(255, Math.max(0, Math.round(y[at] + opacity * (full - y[at]))));
        }
      }
    }
    return y;
  }

  return { SIDE, parse, network, run, means, largest, excess, stamped };
})();
