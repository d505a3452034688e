// The ladder as a plot: the test loss of each stage against its parameters or its seconds (a
// logarithmic axis). A stage that is pointed at or reached with the keyboard shows its samples.
"use strict";

const box = document.getElementById("ladder");
if (box) drawLadder(box, JSON.parse(document.getElementById("ladder-data").textContent));

function drawLadder(box, stages) {
  const svg = box.querySelector("svg");
  const panel = box.querySelector(".samples");
  const W = 760, H = 420, LEFT = 52, RIGHT = 600, TOP = 16, BOTTOM = 372, GAP = 22;
  let chosen = stages.reduce((a, b) => (b.test_loss < a.test_loss ? b : a));
  let axis = "parameters";
  box.hidden = false;

  function make(name, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }

  // Round numbers between two: 1, 2, 5 and their tens for the logarithmic axis, tenths for the loss.
  function ticks(low, high, logarithmic) {
    const found = [];
    if (!logarithmic) {
      for (let t = Math.ceil(low * 10); t <= high * 10; t++) found.push(t / 10);
      return found;
    }
    const many = high / low > 300;
    for (let ten = 10 ** Math.floor(Math.log10(low)); ten <= high; ten *= 10) {
      for (const t of many ? [1] : [1, 2, 5]) if (t * ten >= low && t * ten <= high) found.push(t * ten);
    }
    return found;
  }

  function draw() {
    const values = stages.map((s) => s[axis]);
    const low = Math.min(...values) / 1.6, high = Math.max(...values) * 1.3;
    const losses = stages.map((s) => s.test_loss);
    const best = Math.min(...losses), worst = Math.max(...losses);
    const room = 0.08 * (worst - best || 1);
    const x = (v) => LEFT + (RIGHT - LEFT) * Math.log(v / low) / Math.log(high / low);
    const y = (v) => BOTTOM - (BOTTOM - TOP) * (v - best + room) / (worst - best + 2 * room);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    const clip = make("clipPath", { id: "inside" }, make("defs", {}, svg));
    make("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP }, clip);

    for (const t of ticks(best - room, worst + room, false)) {
      make("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(t), y2: y(t) }, svg);
      make("text", { x: LEFT - 8, y: y(t) + 4, "text-anchor": "end" }, svg, t.toFixed(1));
    }
    for (const t of ticks(low, high, true)) {
      make("line", { class: "grid", x1: x(t), x2: x(t), y1: TOP, y2: BOTTOM }, svg);
      make("text", { x: x(t), y: BOTTOM + 20, "text-anchor": "middle" }, svg, t.toLocaleString("en"));
    }
    make("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 42, "text-anchor": "middle" }, svg,
      axis === "parameters" ? "parameters" : "seconds");

    // Names stand in a column at the right, in the order of the losses, a line each.
    const order = [...stages].sort((a, b) => b.test_loss - a.test_loss);
    const heights = new Map();
    order.forEach((s, i) => heights.set(s, Math.max(y(s.test_loss), i ? heights.get(order[i - 1]) + GAP : 0)));
    for (let i = order.length - 1, below = BOTTOM + GAP; i >= 0; i--) {
      below = Math.min(heights.get(order[i]), below - GAP);
      heights.set(order[i], below);
    }

    for (const s of stages) {
      const label = `${s.stage}: test loss ${s.test_loss.toFixed(4)}, ` +
        `${s.parameters.toLocaleString("en")} parameters, ${Math.round(s.seconds)} seconds`;
      const group = make("g", { class: "stage", tabindex: 0, role: "button", "aria-label": label }, svg);
      group.dataset.stage = s.stage;
      if (axis === "seconds") {
        const points = s.curve.filter((c) => c[2] > 0).map((c) => `${x(c[2])},${y(c[3])}`);
        make("polyline", { points: points.join(" "), "clip-path": "url(#inside)" }, group);
      }
      const [px, py, h] = [x(s[axis]), y(s.test_loss), heights.get(s)];
      make("path", { class: "leader", d: `M${px},${py} L${RIGHT + 8},${h} h8` }, group);
      make("rect", { class: "target", x: RIGHT + 8, y: h - GAP / 2, width: W - RIGHT - 8, height: GAP }, group);
      make("circle", { cx: px, cy: py, r: 6 }, group);
      make("text", { x: RIGHT + 22, y: h + 4 }, group, `${s.stage} ${s.test_loss.toFixed(2)}`);
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
    const next = (stages.indexOf(chosen) + step + stages.length) % stages.length;
    svg.querySelectorAll("g.stage")[next].focus();
  });
  box.addEventListener("change", (event) => {
    axis = event.target.value;
    box.dataset.axis = axis;
    draw();
  });
  draw();
}
