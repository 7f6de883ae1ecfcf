// The page "Try it": one state (picture, trigger, repair), in the URL, and everything on the page drawn from it.
(() => {
  "use strict";
  const HERE = document.currentScript.src.replace(/[^/]*$/, "");
  const SVG = "http://www.w3.org/2000/svg";
  const { SIDE } = Engine;
  const AREA = SIDE * SIDE;
  const QUARTERS = ["upper left", "upper right", "lower left", "lower right"];
  const START = { net: "mnist-badnets", picture: 0, on: true, quarters: [1, 1, 1, 1], opacity: 100, rows: 0, columns: 0,
    repair: "none", mask: null };
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const CHART = { width: 640, height: 150 };

  // Files come as classic scripts, each of which hands in its content: a page opened from disk may not fetch
  const waiting = {};
  const files = {};
  const need = (key) => (files[key] ??= new Promise((resolve, reject) => {
    waiting[key] = resolve;
    const script = document.createElement("script");
    script.src = `${HERE}${key}.js`;
    script.onerror = () => reject(new Error(`${key} is not there`));
    document.head.append(script);
  }));
  window.Try = { give: (key, content) => waiting[key](content) };
  const parsed = async (key) => Engine.parse(await need(key));

  const make = (tag, attributes = {}, ...inside) => {
    const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...inside);
    return node;
  };
  const percent = (p, digits = 0) => {
    const edge = digits ? "" : p > 0.995 && p < 1 ? ">\u00a099" : p < 0.005 && p > 0 ? "<\u00a01" : "";
    return `${edge || (100 * p).toFixed(digits)}\u00a0%`;
  };
  const article = (noun) => (/^(8|[aeiou])/.test(noun) ? "an" : "a");
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  // The state in the address: what departs from the start
  function fromAddress(nets) {
    const state = structuredClone(START);
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name, low, high) => {
      const value = Number.parseInt(given.get(name), 10);
      if (value >= low && value <= high) state[name] = value;
    };
    if (given.get("net") in nets) state.net = given.get("net");
    const net = nets[state.net];
    number("picture", 0, net.labels.length - 1);
    number("opacity", 0, 100);
    number("rows", 1 - SIDE, SIDE - 1);
    number("columns", 1 - SIDE, SIDE - 1);
    number("mask", 0, net.classes.length - 1);
    if (given.get("trigger") === "off") state.on = false;
    if (/^[01]{4}$/.test(given.get("quarters"))) state.quarters = [...given.get("quarters")].map(Number);
    if (net.repairs.some(({ name }) => name === given.get("repair"))) state.repair = given.get("repair");
    return state;
  }
  function toAddress(state) {
    const words = new URLSearchParams();
    const plain = { ...state, quarters: state.quarters.join(""), trigger: state.on ? "on" : "off" };
    const usual = { ...START, quarters: START.quarters.join(""), trigger: "on" };
    for (const name of ["net", "picture", "trigger", "quarters", "opacity", "rows", "columns", "repair", "mask"])
      if (plain[name] !== usual[name] && plain[name] !== null) words.set(name, plain[name]);
    const hash = words.size ? `#${words}` : location.pathname + location.search;
    history.replaceState(null, "", hash);
  }

  function mount(root, nets) {
    const state = fromAddress(nets);
    const faintest = {}; // the lowest opacity that turned an answer, network by network
    const stored = {}; // the networks and what goes with them, once they are there
    let net, drawing, pen, last, spoken, busy;

    const pixelsOf = (picture) => {
      const depth = net.grey ? 1 : 3;
      const bytes = (net.bytes ??= Uint8Array.from(atob(net.pictures), (letter) => letter.charCodeAt(0)));
      const from = picture * AREA * depth;
      return Uint8Array.from({ length: 3 * AREA }, (_, i) =>
        bytes[from + (i % AREA) * depth + (net.grey ? 0 : Math.floor(i / AREA))]);
    };
    const paint = (canvas, pixels) => {
      const context = canvas.getContext("2d");
      const image = context.createImageData(SIDE, SIDE);
      for (let i = 0; i < AREA; i++)
        image.data.set([pixels[i], pixels[AREA + i], pixels[2 * AREA + i], 255], 4 * i);
      context.putImageData(image, 0, 0);
    };

    // What a reader handles
    const change = (what) => {
      Object.assign(state, what);
      show();
    };
    const button = (attributes, ...inside) => make("button", { type: "button", ...attributes }, ...inside);
    const choice = make("select", { "aria-label": "network and attack", onchange: () => choose(choice.value) },
      ...Object.entries(nets).map(([name, { title }]) => make("option", { value: name }, title)));
    const canvas = make("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "application",
      "aria-describedby": "try-keys" });
    const trigger = button({ onclick: () => change({ on: !state.on }) }, "Trigger");
    const draw = button({ onclick: () => (drawing ? change({ picture: 0 }, leave()) : begin()) }, "Draw your own");
    const quarters = QUARTERS.map((name, i) => button({ "aria-label": `${name} quarter of the trigger`, title: name,
      onclick: () => change({ quarters: state.quarters.map((on, k) => (k === i ? 1 - on : on)) }) }));
    const opacityShown = make("span"); // no output: that would be the label's control, and spoken at each step
    const opacity = make("input", { type: "range", min: 0, max: 100, step: 1,
      oninput: () => change({ opacity: Number(opacity.value) }) });
    const back = button({ onclick: () => change({ rows: 0, columns: 0 }) }, "Put it back");
    const thumbs = make("div", { class: "try-thumbs", role: "group", "aria-label": "test pictures" });
    const goal = make("p", { class: "try-quiet" });
    const repairs = make("fieldset", { class: "try-repairs" });
    const mask = make("select", { onchange: () => change({ mask: mask.value === "" ? null : Number(mask.value) }) });
    const masks = make("label", { class: "try-mask" }, "Every unit takes the mask ", mask);

    // What the page shows
    const answer = make("p", { class: "try-answer" });
    const aloud = make("p", { class: "try-aloud", "aria-live": "polite" });
    const bars = make("div", { class: "try-bars", "aria-hidden": "true" });
    const layers = make("div", { class: "try-layers", role: "img" });
    const layersSaid = make("p", { class: "try-quiet" });
    const chart = make("svg:svg", { viewBox: `0 0 ${CHART.width} ${CHART.height + 3}`, class: "try-channels", role: "img" });
    const chartSaid = make("p", { class: "try-quiet" });

    root.replaceChildren(
      make("div", { class: "try-left" },
        make("label", { class: "try-net" }, "Network ", choice),
        canvas,
        make("div", { class: "try-buttons" }, trigger, draw),
        make("p", { id: "try-keys", class: "try-quiet" }),
        make("div", { class: "try-trigger" },
          make("div", { class: "try-quarters", role: "group", "aria-label": "quarters of the trigger" }, ...quarters),
          make("label", {}, "Opacity ", opacityShown, opacity), back),
        goal, thumbs),
      make("div", { class: "try-right" }, answer, aloud, bars, repairs, masks),
      make("div", { class: "try-below" },
        make("h3", {}, "How unusual the signal is, layer by layer"), layers, layersSaid,
        make("h3", {}, "The last of these layers, channel by channel"), chart, chartSaid),
    );
    const keys = root.querySelector("#try-keys");

    // Another network: the controls that depend on it are made anew
    async function choose(name) {
      const first = name === state.net;
      net = nets[name];
      choice.value = name;
      if (!first) Object.assign(state, { net: name, repair: "none", mask: null });
      leave();
      draw.hidden = !net.grey;
      thumbs.replaceChildren(...net.labels.map((label, picture) => {
        const small = make("canvas", { width: SIDE, height: SIDE });
        paint(small, pixelsOf(picture));
        return button({ "aria-label": `${article(net.classes[label])} ${net.classes[label]}`, onclick: () => {
          leave();
          change({ picture });
        } }, small);
      }));
      repairs.replaceChildren(make("legend", {}, "Repair"), ...net.repairs.map(({ name: repair, title, acc, asr }) =>
        make("label", {},
          make("input", { type: "radio", name: "try-repair", value: repair, onchange: () => change({ repair }) }),
          make("span", {}, title),
          make("small", {}, `ACC ${percent(acc, 1)} · ASR ${percent(asr, 1)}`))));
      mask.replaceChildren(make("option", { value: "" }, "that its own head picks"),
        ...net.classes.map((title, k) => make("option", { value: k }, `of class ${title}`)));
      bars.replaceChildren(...net.classes.map((title, k) =>
        make("div", { class: k === net.target ? "target" : "" }, make("span", {}, title),
          make("div", {}, make("i", { class: "before" }), make("i", { class: "after" })), make("b"))));
      await show();
    }

    // The networks that the state asks for, from their files
    async function ready() {
      const mine = (stored[state.net] ??= {});
      const at = state.net;
      mine.files ??= parsed(`${at}/none`);
      const { tensors } = await mine.files;
      mine.none ??= Engine.network(tensors);
      if (!mine[state.repair]) {
        const repair = state.repair;
        const { tensors: own } = await parsed(`${at}/${repair}`);
        mine[repair] = Engine.network({ ...tensors, ...own }); // bounds come alone, the others with all weights
      }
      mine.trigger ??= Object.fromEntries(Object.entries(Engine.parse(nets[at].trigger).tensors)
        .map(([name, { values }]) => [name, values]));
      mine.reach ??= (await parsed(`${at}/reach`)).tensors;
      return mine;
    }

    // Draw the state, once a frame at most, and again where it changed meanwhile
    let asked = false;
    function show() {
      if (asked) return busy;
      asked = true;
      busy = new Promise((resolve) => requestAnimationFrame(resolve)).then(async () => {
        root.setAttribute("aria-busy", "true");
        const mine = await ready();
        asked = false;
        if (!mine[state.repair] || mine !== stored[state.net]) return show();
        update(mine);
        root.removeAttribute("aria-busy");
      }).catch((problem) => {
        asked = false;
        answer.textContent = `This part of the page could not be loaded (${problem.message}).`;
      });
      return busy;
    }

    function update(mine) {
      const began = performance.now();
      const pixels = drawing ?? pixelsOf(state.picture);
      const wanted = { ...state, opacity: state.opacity / 100 };
      const stamped = state.on ? Engine.stamped(pixels, mine.trigger, wanted) : Float32Array.from(pixels);
      const input = stamped.map((value) => value / 255);
      const before = Engine.run(mine.none, input);
      const after = state.repair === "none" ? before : Engine.run(mine[state.repair], input, state.mask);
      last = { before, after, was: Engine.largest(before.probabilities), now: Engine.largest(after.probabilities) };
      paint(canvas, stamped);
      if (pen) mark();
      const label = drawing ? null : net.labels[state.picture];
      controls(label);
      say(label);
      fill(bars);
      unusual(before, mine.reach);
      channels(before, after, mine.reach);
      play(mine, pixels);
      toAddress(drawing ? { ...state, picture: 0 } : state);
      last.milliseconds = performance.now() - began;
    }

    function controls(label) {
      const pressed = (node, on) => node.setAttribute("aria-pressed", String(Boolean(on)));
      pressed(trigger, state.on);
      pressed(draw, drawing);
      quarters.forEach((node, i) => pressed(node, state.quarters[i]));
      [...thumbs.children].forEach((node, i) => pressed(node, !drawing && i === state.picture));
      opacity.value = state.opacity;
      opacityShown.textContent = `${state.opacity} %`;
      back.disabled = !state.rows && !state.columns;
      for (const radio of repairs.querySelectorAll("input")) radio.checked = radio.value === state.repair;
      masks.hidden = !last.after.heads.length;
      mask.value = state.mask ?? "";
      keys.textContent = drawing
        ? "Draw with the pointer. By keyboard: arrow keys move the pen, Space puts it down and lifts it."
        : "Drag the trigger over the picture, or move it with the arrow keys.";
      canvas.setAttribute("aria-label", `${picture(label)}, ${shown()}`);
    }

    const picture = (label) => label === null ? "your drawing" : `${article(net.classes[label])} ${net.classes[label]}`;
    function shown() {
      const on = state.quarters.filter(Boolean).length;
      if (!state.on || !on || !state.opacity) return "without a trigger";
      const part = on === 4 ? "with the trigger" : `with ${on} of 4 quarters of the trigger`;
      const moved = state.rows || state.columns ? `, moved by ${state.rows} rows and ${state.columns} columns` : "";
      return `${part} at ${state.opacity} %${moved}`;
    }

    // The sentence; a screen reader hears it where the answer changed
    function say(label) {
      const { was, now, after } = last;
      const undefended = `the network says ${net.classes[was]}`;
      const repaired = state.repair === "none" ? "" : `; repaired, it says ${net.classes[now]}`;
      const sure = percent(after.probabilities[now]);
      answer.replaceChildren(`${capital(picture(label))} ${shown()}: `,
        make("strong", {}, `${undefended}${repaired}`), ` (${sure}).`);
      if (state.mask !== null && after.heads.length)
        answer.append(` Every unit was given the mask of ${net.classes[state.mask]}.`);
      const news = [state.net, state.repair, was, now].join();
      if (spoken !== undefined && spoken !== news) aloud.textContent = answer.textContent;
      spoken = news;
    }

    function fill() {
      const { before, after, now } = last;
      [...bars.children].forEach((row, k) => {
        row.classList.toggle("top", k === now);
        row.querySelector(".before").style.width = `${100 * before.probabilities[k]}%`;
        row.querySelector(".after").style.width = `${100 * after.probabilities[k]}%`;
        row.querySelector("b").textContent = percent(after.probabilities[k]);
      });
    }

    function unusual(before, reach) {
      const shares = before.units.map(({ name, signal }) => [name, Engine.excess(signal, reach[`${name}.2`].values)]);
      layers.replaceChildren(...shares.map(([name, share]) => {
        const bar = make("i");
        bar.style.height = `${Math.min(100, 400 * share)}%`;
        return make("div", {}, make("b", {}, (100 * share).toFixed(share < 0.0995 ? 1 : 0)), bar,
          make("span", {}, name.replace("block", "").replace(".", "·")));
      }));
      const [most, share] = shares.reduce((best, one) => (one[1] > best[1] ? one : best));
      layers.setAttribute("aria-label", share < 0.0005
        ? "In no unit does this picture's signal exceed what clean training images reach."
        : `Most in ${most}: ${percent(share, 1)}; in the last unit ${percent(shares.at(-1)[1], 1)}.`);
      layersSaid.textContent = "Percent of each unit's signal in the undefended network that lies above everything " +
        "that clean training images reach in the same place.";
    }

    function channels(before, after, reach) {
      const peaks = reach[`peak.${state.repair}`].values;
      const heights = ({ units }) => {
        const { output, area } = units.at(-1);
        return Engine.means(output.map(Math.abs), area);
      };
      const [was, now] = [heights(before), heights(after)];
      const step = CHART.width / now.length;
      const scale = CHART.height / Math.max(...now, ...peaks, 1e-9);
      const box = (value, attributes) => make("svg:rect", { y: CHART.height - value * scale, height: value * scale, ...attributes });
      const lit = [...now].filter((value, c) => value > peaks[c]).length;
      chart.replaceChildren(...[...now].flatMap((value, c) => [
        box(value, { x: c * step + 0.5, width: step - 1, class: value > peaks[c] ? "lit" : "" }),
        make("svg:line", { x1: c * step, x2: (c + 1) * step, y1: CHART.height - peaks[c] * scale, y2: CHART.height - peaks[c] * scale }),
      ]));
      const changed = state.repair === "none" ? "" : ` The undefended network's mean is ${(average(was)).toFixed(3)}, the repaired one's ${average(now).toFixed(3)}.`;
      chartSaid.textContent = `Bars: the mean magnitude of each channel. Lines: the most that a clean training image ` +
        `reaches in this network. ${lit ? `${lit} of ${now.length} channels exceed it.` : "No channel exceeds it."}${changed}`;
      chart.setAttribute("aria-label", chartSaid.textContent);
    }
    const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

    // The goal: turn the undefended network's answer to the attacker's class with the faintest trigger
    function play(mine, pixels) {
      if (state.on && last.was === net.target && (faintest[state.net] ?? 101) > state.opacity) {
        const clean = Engine.run(mine.none, Float32Array.from(pixels, (value) => value / 255));
        if (Engine.largest(clean.probabilities) !== net.target) faintest[state.net] = state.opacity;
      }
      const best = faintest[state.net];
      goal.textContent = `Can you flip the answer to ${net.classes[net.target]} with a fainter trigger? ` +
        (best === undefined ? "" : `Your faintest: ${best} %.`);
    }

    // Drawing, with a pen that keys move too
    function begin() {
      drawing = new Uint8Array(3 * AREA);
      pen = { row: SIDE / 2, column: SIDE / 2, down: false };
      state.on = false;
      canvas.focus();
      show();
    }
    function leave() {
      drawing = pen = undefined;
    }
    function ink(row, column) {
      for (let i = 0; i < AREA; i++) {
        const distance = Math.hypot(Math.floor(i / SIDE) + 0.5 - row, (i % SIDE) + 0.5 - column);
        const value = 255 * Math.max(0, Math.min(1, 2.1 - distance));
        for (let c = 0; c < 3; c++) drawing[c * AREA + i] = Math.max(drawing[c * AREA + i], value);
      }
    }
    function mark() { // where the pen is
      const context = canvas.getContext("2d");
      context.fillStyle = pen.down ? "#f08a4b" : "#6ea8e6";
      if (document.activeElement === canvas && !pen.pointer)
        context.fillRect(Math.min(SIDE - 1, Math.floor(pen.column)), Math.min(SIDE - 1, Math.floor(pen.row)), 1, 1);
    }

    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return { row: ((event.clientY - box.top) / box.height) * SIDE, column: ((event.clientX - box.left) / box.width) * SIDE };
    };
    let held;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held = { ...place(event), rows: state.rows, columns: state.columns };
      if (drawing) {
        pen.pointer = true;
        ink(held.row, held.column);
        show();
      }
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return;
      const { row, column } = place(event);
      if (drawing) {
        ink(row, column);
        show();
      } else move(held.rows + Math.round(row - held.row), held.columns + Math.round(column - held.column));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = undefined));
    function move(rows, columns) {
      const within = (value) => Math.max(1 - SIDE, Math.min(SIDE - 1, value));
      change({ rows: within(rows), columns: within(columns), on: true });
    }
    canvas.addEventListener("keydown", (event) => {
      const arrow = ARROWS[event.key];
      if (!arrow && !(drawing && event.key === " ")) return;
      event.preventDefault();
      if (!drawing) return move(state.rows + arrow[0], state.columns + arrow[1]);
      pen.pointer = false;
      if (arrow) Object.assign(pen, { row: Math.max(0, Math.min(SIDE, pen.row + arrow[0])),
        column: Math.max(0, Math.min(SIDE, pen.column + arrow[1])) });
      else pen.down = !pen.down;
      if (pen.down) ink(pen.row, pen.column);
      show();
    });
    window.addEventListener("hashchange", () => {
      Object.assign(state, fromAddress(nets));
      choose(state.net);
    });

    root.handle = { state, last: () => last, idle: () => busy, stored };
    return choose(state.net);
  }

  // After the first paint
  const start = async () => {
    const root = document.querySelector(".try");
    if (root) await mount(root, await need("nets"));
  };
  addEventListener("load", () => requestAnimationFrame(() => setTimeout(start)));
})();
