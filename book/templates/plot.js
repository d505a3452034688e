// The ladder as a plot: the test loss of each stage against its parameters or its seconds (a
// logarithmic axis). A stage that is pointed at or reached with the keyboard shows its samples.
"use strict";

const box = document.getElementById("ladder");
if (box) drawLadder(box, JSON.parse(document.getElementById("ladder-data").textContent));

function drawLadder(box, stages) {
  const svg = box.querySelector("svg");
  const panel = box.querySelector(".samples");
  const LEFT = 46, TOP = 12, GAP = 22; // pixels: room for the numbers at the left, a line of text
  let chosen = stages.reduce((a, b) => (b.test_loss < a.test_loss ? b : a));
  let axis = "parameters", shown = stages, width = 0;
  box.hidden = false;

  function make(name, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }

  // Round numbers between two: by equal steps for the loss, tens (and 2, 5 times) for the other.
  function evenly(low, high) {
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((s) => (high - low) / s <= 7);
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
  }

  function byTens(low, high) {
    const found = [];
    for (let ten = 10 ** Math.floor(Math.log10(low)); ten <= high; ten *= 10) {
      for (const t of high / low > 100 ? [1] : [1, 2, 5]) found.push(t * ten);
    }
    return found.filter((t) => t >= low && t <= high);
  }

  function draw() {
    width = svg.clientWidth;
    if (!width) return; // not laid out yet: the observer draws
    const narrow = width < 560, H = narrow ? 330 : 420;
    const right = width - (narrow ? 148 : 160), bottom = H - 48;
    const values = shown.map((s) => s[axis]), losses = shown.map((s) => s.test_loss);
    const low = Math.min(...values) / 1.6, high = Math.max(...values) * 1.3;
    const best = Math.min(...losses), worst = Math.max(...losses);
    const room = 0.08 * (worst - best || 1);
    const x = (v) => LEFT + (right - LEFT) * Math.log(v / low) / Math.log(high / low);
    const y = (v) => bottom - (bottom - TOP) * (v - best + room) / (worst - best + 2 * room);
    svg.replaceChildren();
    svg.setAttribute("height", H);
    const clip = make("clipPath", { id: "inside" }, make("defs", {}, svg));
    make("rect", { x: LEFT, y: TOP, width: right - LEFT, height: bottom - TOP }, clip);

    for (const t of evenly(best - room, worst + room)) {
      make("line", { class: "grid", x1: LEFT, x2: right, y1: y(t), y2: y(t) }, svg);
      make("text", { x: LEFT - 8, y: y(t) + 4, "text-anchor": "end" }, svg, t.toFixed(2));
    }
    for (const t of byTens(low, high)) {
      make("line", { class: "grid", x1: x(t), x2: x(t), y1: TOP, y2: bottom }, svg);
      make("text", { x: x(t), y: bottom + 20, "text-anchor": "middle" }, svg,
        t.toLocaleString("en", { notation: "compact" }));
    }
    make("text", { x: (LEFT + right) / 2, y: bottom + 42, "text-anchor": "middle" }, svg,
      axis === "parameters" ? "parameters" : "seconds");

    // Names stand in a column at the right, in the order of the losses, a line each.
    const order = [...shown].sort((a, b) => b.test_loss - a.test_loss);
    const heights = new Map();
    order.forEach((s, i) => heights.set(s, Math.max(y(s.test_loss), i ? heights.get(order[i - 1]) + GAP : 0)));
    for (let i = order.length - 1, below = bottom + GAP; i >= 0; i--) {
      below = Math.min(heights.get(order[i]), below - GAP);
      heights.set(order[i], below);
    }

    for (const s of shown) {
      const label = `${s.stage}: test loss ${s.test_loss.toFixed(4)}, ` +
        `${s.parameters.toLocaleString("en")} parameters, ${Math.round(s.seconds)} seconds`;
      const group = make("g", { class: "stage", tabindex: 0, role: "button", "aria-label": label }, svg);
      group.dataset.stage = s.stage;
      if (axis === "seconds") {
        const points = s.curve.filter((c) => c[2] > 0).map((c) => `${x(c[2])},${y(c[3])}`);
        make("polyline", { points: points.join(" "), "clip-path": "url(#inside)" }, group);
      }
      const [px, py, h] = [x(s[axis]), y(s.test_loss), heights.get(s)];
      make("path", { class: "leader", d: `M${px},${py} L${right + 8},${h} h8` }, group);
      make("rect", { class: "target", x: right + 8, y: h - GAP / 2, width: width - right - 8, height: GAP }, group);
      make("circle", { cx: px, cy: py, r: 6 }, group);
      make("text", { x: right + 22, y: h + 4 }, group, `${s.stage} ${s.test_loss.toFixed(narrow ? 2 : 3)}`);
      for (const kind of ["pointerenter", "focus", "click"]) group.addEventListener(kind, () => choose(s));
    }
    choose(chosen);
  }

  function choose(stage) {
    chosen = stage;
    for (const group of svg.querySelectorAll("g.stage")) {
      const mine = group.dataset.stage === stage.stage;
      group.classList.toggle("chosen", mine);
      group.setAttribute("aria-pressed", mine);
    }
    if (panel.dataset.stage === stage.stage) return;
    panel.dataset.stage = stage.stage;
    panel.replaceChildren();
    const head = panel.appendChild(document.createElement("h3"));
    const link = head.appendChild(document.createElement("a"));
    link.href = stage.page;
    link.textContent = stage.stage;
    for (const text of [
      stage.idea,
      `${stage.parameters.toLocaleString("en")} parameters, ${Math.round(stage.seconds)} s, ` +
        `test loss ${stage.test_loss.toFixed(4)}`,
    ]) panel.appendChild(document.createElement("p")).textContent = text;
    const list = panel.appendChild(document.createElement("ul"));
    for (const sample of stage.samples) list.appendChild(document.createElement("li")).textContent = sample;
  }

  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (shown.indexOf(chosen) + step + shown.length) % shown.length;
    svg.querySelectorAll("g.stage")[next].focus();
  });
  box.addEventListener("change", () => {
    axis = box.querySelector("input[name=axis]:checked").value;
    shown = box.querySelector("input[name=close]")?.checked ? stages.slice(1) : stages;
    box.dataset.axis = axis;
    draw();
  });
  new ResizeObserver(() => { if (svg.clientWidth !== width) draw(); }).observe(svg);
  draw();
}
