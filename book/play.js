// The page of play.py: asks the server what a run makes of a beginning, and draws it.
"use strict";

const ROWS = 16; // bars that are shown
const FONT = "12px ui-monospace, monospace";
const SIGNS = { start: "^", end: "$", earlier: "…" }; // where there is no room for the name
const find = (selector, root = document) => root.querySelector(selector);
const inputs = { temperature: 1, top_k: 0, top_p: 1, seed: 0 };
const panes = [];
let limits = { prompt: 4000, tokens: 2000 };

async function ask(path, body, signal) {
  const how = body && {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body), signal,
  };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running in its terminal?");
  }
  if (answer.ok && !answer.headers.get("Content-Type").startsWith("application/json")) return answer.body;
  const told = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (told.error) throw new Error(told.error);
  return told;
}

// Numbers of the form, held within what the server takes; what is half typed counts as its least.
function settings() {
  const read = {};
  for (const name of Object.keys(inputs)) {
    const input = find(`#${name}`);
    const value = Math.min(Math.max(Number(input.value) || 0, Number(input.min)), Number(input.max));
    read[name] = name === "top_k" || name === "seed" ? Math.floor(value) : value;
  }
  return read;
}

const percent = (share) => {
  const value = 100 * share;
  return value === 0 ? "0%" : value < 0.01 ? "<0.01%" : `${value.toFixed(value < 9.95 ? 2 : 1)}%`;
};

// How a token is shown; what cannot be seen has a sign.
function shownAs(token) {
  if (typeof token === "string") return token;
  if (token.name) return `‹${token.name}›`;
  return token.text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

const tint = (name, strength) => `color-mix(in srgb, var(--${name}) ${(100 * strength).toFixed(1)}%, var(--page))`;

// A colour of the style sheet as it is in the theme of now, for a canvas.
function colour(name) {
  const probe = find("#theme");
  probe.style.outlineColor = `var(--${name})`;
  const found = getComputedStyle(probe).outlineColor;
  probe.style.outlineColor = "";
  return found;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Pane {
  constructor(side, names) {
    const root = find("#pane").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.side = side;
    for (const part of ["run", "about", "error", "next", "others", "cost", "typed",
      "picture", "caption", "maps", "scale", "cell", "num", "length", "samples", "status"]) {
      this[part] = find(`.${part}`, root);
    }
    find("h2", root).textContent = `${side} run`;
    find(".run-label", root).textContent = `${side} run`;
    this.samples.setAttribute("aria-label", `Samples of the ${side.toLowerCase()} run`);
    this.next.setAttribute("aria-label", "The likeliest tokens");
    for (const part of ["run", "picture"]) {
      this[part].id = `${part}-${side}`.toLowerCase();
      find(`.${part}-label`, root).htmlFor = this[part].id;
    }
    for (const run of names) {
      const name = `${run.name}  (${run.stage} on ${run.data})`;
      this.run.append(new Option(name, run.name));
    }
    for (let i = 0; i < ROWS; i++) this.next.append(this.makeBar());
    this.run.addEventListener("change", () => { this.stop(); this.fresh = true; this.look(); });
    this.picture.addEventListener("change", () => this.look());
    this.fresh = true; // of this run no sample was drawn yet: its defaults are to be taken
  }

  // What may come next, what was typed, the picture. One question at a time: what changes meanwhile
  // is asked afterwards.
  async look() {
    this.again = this.looking;
    if (this.looking) return;
    this.looking = true;
    this.root.setAttribute("aria-busy", "true");
    const body = { run: this.run.value, prompt: find("#prompt").value, picture: this.picture.value, ...settings() };
    try {
      this.show(await ask("look", body));
    } catch (error) {
      this.error.textContent = error.message;
      this.root.classList.add("stale");
    }
    this.root.removeAttribute("aria-busy");
    this.looking = false;
    if (this.again) this.look();
  }

  show(seen) {
    this.seen = seen;
    this.error.textContent = "";
    this.root.classList.remove("stale");
    const loss = seen.val_loss === null ? "" : ` · validation loss ${seen.val_loss.toFixed(4)} nats`;
    this.about.textContent = `${seen.parameters.toLocaleString("en")} parameters · block of ${seen.block_size}${loss}`;
    if (this.fresh) [this.num.value, this.length.value, this.fresh] = [seen.num, seen.length, false];
    this.showNext(seen);
    this.showTyped(seen);
    const same = [...this.picture.options].map((o) => o.value).join() === seen.pictures.join();
    if (!same) this.picture.replaceChildren(...seen.pictures.map((name) => new Option(name, name)));
    this.picture.value = seen.picture;
    this.cell.textContent = "";
    this.drawMaps();
  }

  makeBar() {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    const track = element("span", "track");
    track.append(element("i", "chance"), element("i", "own"));
    button.append(element("span", "token"), track, element("span", "share"));
    button.addEventListener("click", () => {
      const prompt = find("#prompt");
      if (prompt.value.length + button.value.length > limits.prompt) return;
      prompt.value += button.value;
      lookAll();
    });
    item.append(button);
    return item;
  }

  showNext(seen) {
    [...this.next.children].forEach((item, i) => {
      const token = seen.next[i];
      item.hidden = !token;
      if (!token) return;
      const button = item.firstElementChild;
      button.value = token.text;
      button.disabled = Boolean(token.name);
      const name = find(".token", button);
      name.textContent = shownAs(token);
      name.classList.toggle("special", Boolean(token.name));
      find(".share", button).textContent = percent(token.chance);
      button.title = `${shownAs(token)} drawn ${percent(token.chance)}, by the model ${percent(token.probability)}`;
    });
    const shown = seen.next.slice(0, ROWS);
    const rest = seen.others + seen.next.length - shown.length;
    const left = 1 - shown.reduce((sum, token) => sum + token.chance, 0);
    this.others.textContent = rest > 0 ? `${rest.toLocaleString("en")} others together: ${percent(Math.max(0, left))}` : "";
    scaleBars();
  }

  showTyped(seen) {
    const costs = seen.tokens.map((token) => token.nats).filter((nats) => nats !== null);
    const mean = costs.reduce((sum, nats) => sum + nats, 0) / costs.length;
    this.cost.textContent = costs.length ? `${mean.toFixed(3)} nats a token on average.` : "";
    this.typed.replaceChildren(seen.earlier ? `… ${seen.earlier.toLocaleString("en")} before ` : "");
    for (const token of seen.tokens) {
      const span = element("span", token.name ? "special" : "", shownAs(token));
      if (token.nats !== null) {
        span.style.background = tint("accent", Math.min(0.4, token.nats / 16));
        span.title = `${token.nats.toFixed(3)} nats: it was given ${percent(Math.exp(-token.nats))}`;
      }
      this.typed.append(span, document.createElement("wbr"));
    }
  }

  drawMaps() {
    if (!this.seen) return;
    this.maps.classList.toggle("many", this.seen.maps.length > 2);
    this.maps.replaceChildren();
    this.caption.textContent = this.seen.caption;
    const values = this.seen.maps.flatMap((map) => map.values.flat()).map(Math.abs);
    const high = values.reduce((most, value) => Math.max(most, value), 1e-9); // one scale for all
    for (const map of this.seen.maps) new Chart(map, this, high);
    this.showScale(high);
  }

  showScale(high) {
    this.scale.replaceChildren();
    const [map] = this.seen.maps;
    if (map.rows.length === 1) {
      this.scale.textContent = `The highest is ${high < 0.0005 ? 0 : high.toFixed(3)}.`;
      return;
    }
    for (const step of map.signed ? [-1, -0.25, 0, 0.25, 1] : [0, 0.1, 0.4, 1]) {
      const swatch = element("i");
      swatch.style.background = tint(step < 0 ? "cold" : "accent", Math.sqrt(Math.abs(step)));
      const entry = element("span");
      entry.append(swatch, (step * high).toFixed(high < 10 ? 2 : 0));
      this.scale.append(entry);
    }
  }

  // A sample, a line of JSON for each token, drawn as they come.
  async sample(seed) {
    this.stop();
    const going = new AbortController();
    this.going = going;
    const prompt = find("#prompt").value;
    const bounded = (input, most) => Math.min(Math.max(1, Math.floor(input.value) || 1), most);
    const num = bounded(this.num, 20);
    const length = bounded(this.length, Math.floor(limits.tokens / num));
    [this.num.value, this.length.value] = [num, length];
    this.samples.replaceChildren();
    this.status.textContent = "drawing …";
    this.error.textContent = "";
    let tokens = 0;
    try {
      const body = { run: this.run.value, prompt, num, length, ...settings(), seed };
      for await (const line of linesOf(await ask("sample", body, going.signal))) {
        if (line.error) throw new Error(line.error);
        if (line.tokens !== undefined) {
          const speed = line.tokens / Math.max(line.seconds, 0.001);
          this.status.textContent = `${line.tokens.toLocaleString("en")} tokens, ${Math.round(speed).toLocaleString("en")} a second; seed ${seed}`;
        } else {
          if (line.text !== null) tokens += 1;
          this.addPiece(line.sample, line.text, prompt);
        }
      }
    } catch (error) {
      if (this.going !== going) return; // a later one has taken its place
      const stopped = error.name === "AbortError";
      this.status.textContent = stopped ? `stopped; seed ${seed}` : "";
      if (!stopped) this.error.textContent = error.message;
    }
    find(".growing", this.samples)?.classList.remove("growing");
    if (this.going === going) this.going = null;
    showGoing();
  }

  addPiece(number, text, prompt) {
    let line = this.samples.children[number];
    const low = this.samples.scrollHeight - this.samples.scrollTop - this.samples.clientHeight < 40;
    if (!line) {
      line = element("div", "growing");
      line.append(element("span", "given"), document.createTextNode(""));
      this.samples.append(line);
      if (text !== null && text.startsWith(prompt)) {
        line.firstChild.textContent = prompt;
        text = text.slice(prompt.length);
      }
    }
    if (text === null) line.classList.remove("growing");
    else line.lastChild.data += text;
    if (low) this.samples.scrollTop = this.samples.scrollHeight;
  }

  stop() {
    this.going?.abort();
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const read = JSON.parse(line);
      ended ||= "tokens" in read || "error" in read;
      yield read;
    }
  }
  if (!ended) throw new Error("The server went away in the middle of this sample.");
}

// Numbers as colours, or a single row as bars. The arrow keys and the pointer say what stands where.
class Chart {
  constructor(map, pane, high) {
    this.map = map;
    this.pane = pane;
    this.high = high; // of the strongest colour, the same in all maps of a picture
    this.rows = map.rows.length;
    this.columns = map.columns.length;
    this.bars = this.rows === 1;
    const figure = element("figure", "map");
    const scroll = element("div", "scroll");
    this.canvas = element("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", this.summary());
    scroll.append(this.canvas);
    if (map.title) figure.append(element("figcaption", "", map.title));
    figure.append(scroll);
    pane.maps.append(figure);
    this.context = this.canvas.getContext("2d");
    this.measure(scroll.clientWidth);
    this.draw();
    if (map.mark === null) scroll.scrollLeft = scroll.scrollWidth; // where one is typing
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => {
      if (pane.pointedAt === this) pane.cell.textContent = ""; // and not what the keys asked for
    });
    this.canvas.addEventListener("keydown", (event) => this.step(event));
  }

  summary() {
    const values = this.map.values.flat();
    const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
    return `${this.map.title || this.pane.caption.textContent} ${this.rows} rows, ${this.columns} columns, values from ${least} to ${most}. The arrow keys read it.`;
  }

  // The width and height of a cell, and the room for names at the left and at the bottom.
  measure(room) {
    this.context.font = FONT;
    const square = !this.bars && this.map.rows.length <= 64 && Math.abs(this.rows - this.columns) < 2;
    const widest = Math.max(0, ...this.map.rows.slice(0, 64).map((row) => this.context.measureText(shownAs(row)).width));
    const names = Math.ceil(widest) + 6;
    const least = this.columns > 20 || this.pane.seen.maps.length > 2 ? 7 : 12;
    const most = square && this.pane.seen.maps.length > 2 ? 16 : 26;
    const fit = (left) => Math.max(least, Math.min(most, Math.floor((room - left) / this.columns)));
    const tall = (left) => this.bars ? 90 : square ? Math.min(16, fit(left)) : Math.max(1, Math.min(16, Math.floor(330 / this.rows)));
    this.left = !this.bars && tall(names) >= 9 ? names : 0;
    [this.width, this.height] = [fit(this.left), tall(this.left)];
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [this.left + this.width * this.columns + 1, this.height * this.rows + 18];
    [this.canvas.width, this.canvas.height] = [Math.ceil(w * ratio), Math.ceil(h * ratio)];
    [this.canvas.style.width, this.canvas.style.height] = [`${w}px`, `${h}px`];
    this.context.scale(ratio, ratio);
  }

  draw() {
    const [above, below] = [colour("accent"), colour("cold")];
    const { context, left, width, height } = this;
    context.fillStyle = colour("page");
    context.fillRect(left, 0, width * this.columns, height * this.rows);
    const [gapX, gapY] = [width > 8 ? 1 : 0, height > 8 && !this.bars ? 1 : 0];
    this.map.values.forEach((row, y) => row.forEach((value, x) => {
      const strength = Math.abs(value) / this.high;
      const size = this.bars ? Math.max(1, strength * (height - 2)) : height;
      context.fillStyle = value < 0 ? below : above;
      context.globalAlpha = this.bars ? 1 : Math.sqrt(strength);
      context.fillRect(left + x * width, (y + 1) * height - size, width - gapX, size - gapY);
    }));
    context.globalAlpha = 1;
    if (this.map.mark !== null) {
      context.strokeStyle = colour("text");
      context.lineWidth = 1.5;
      context.strokeRect(left + 0.5, this.map.mark * height - 0.5, width * this.columns - 1, height);
    }
    context.fillStyle = colour("muted");
    this.write();
  }

  write() {
    const { context, left, width, height } = this;
    context.font = FONT;
    context.textBaseline = "middle";
    if (left) this.map.rows.forEach((row, y) => context.fillText(shownAs(row), 0, (y + 0.5) * height));
    context.textAlign = "center";
    if (width < 7) return;
    this.map.columns.forEach((column, x) => {
      const text = shownAs(column);
      const short = context.measureText(text).width <= width + 1 ? text : SIGNS[column.name ?? column] ?? "";
      context.fillText(short, left + (x + 0.5) * width, height * this.rows + 10);
    });
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - this.left) / this.width);
    const y = Math.floor((event.clientY - box.top) / this.height);
    this.pane.pointedAt = this;
    this.tell(x, y);
  }

  step(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.pane.pointedAt = null;
    const [x, y] = this.at || [this.columns - 1 - move[0], (this.map.mark ?? 0) - move[1]];
    this.tell(Math.min(Math.max(x + move[0], 0), this.columns - 1), Math.min(Math.max(y + move[1], 0), this.rows - 1));
  }

  tell(x, y) {
    const value = this.map.values[y]?.[x];
    if (value === undefined) return;
    this.at = [x, y];
    const row = this.bars ? "" : `${shownAs(this.map.rows[y])}, `;
    this.pane.cell.textContent = `${row}${shownAs(this.map.columns[x])}: ${value.toFixed(3)}`;
  }
}

// Both panes on one scale, so that their bars can be compared.
function scaleBars() {
  const lists = panes.filter((pane) => pane.seen).map((pane) => pane.seen.next);
  const most = Math.max(1e-9, ...lists.flat().flatMap((token) => [token.chance, token.probability]));
  for (const pane of panes) {
    pane.seen?.next.slice(0, ROWS).forEach((token, i) => {
      const [chance, own] = pane.next.children[i].querySelectorAll(".track i");
      chance.style.width = `${(100 * token.chance) / most}%`;
      own.style.width = `${(100 * token.probability) / most}%`;
    });
  }
}

function showValues() {
  for (const name of ["temperature", "top_p"]) {
    const value = Number(find(`#${name}`).value);
    const short = value.toFixed(2);
    find(`#${name}-value`).textContent = Number(short) === value ? short : value;
  }
}

// What was given on the command line stays as it is; a slider that is moved goes by hundredths.
function begin(given) {
  for (const [name, value] of Object.entries(given)) {
    const input = find(`#${name}`);
    input.min = Math.min(input.min, value);
    input.max = Math.max(input.max, value);
    input.value = value;
    if (input.type === "range") {
      input.addEventListener("input", () => { input.value = Math.round(100 * input.value) / 100; });
    }
  }
}

function lookAll() {
  showValues();
  for (const pane of panes) pane.look();
}

function showGoing() {
  find("#stop").disabled = !panes.some((pane) => pane.going);
}

let drawn = false;

function sampleAll() {
  const seed = find("#seed");
  if (drawn && find("#next-seed").checked) seed.value = settings().seed + 1;
  drawn = true;
  for (const pane of panes) pane.sample(settings().seed);
  showGoing();
}

// As in the book: the system's choice is not remembered, so that the page goes on following it.
function theme() {
  const root = document.documentElement;
  const button = find("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const redraw = () => {
    button.textContent = now() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} theme`);
    for (const pane of panes) pane.drawMaps();
  };
  try {
    root.dataset.theme = localStorage.getItem("theme") || "";
  } catch {} // no storage: a choice lasts as long as the page
  button.addEventListener("click", () => {
    const wanted = now() === "dark" ? "light" : "dark";
    root.dataset.theme = wanted === (dark.matches ? "dark" : "light") ? "" : wanted;
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {}
    redraw();
  });
  dark.addEventListener("change", redraw);
  redraw();
}

async function start() {
  theme();
  let told;
  try {
    told = await ask("runs");
  } catch (error) {
    find("#notice").textContent = error.message;
    return;
  }
  limits = told.limits;
  find("#prompt").maxLength = limits.prompt;
  begin(told.begin);
  for (const side of ["Left", "Right"]) {
    const pane = new Pane(side, told.runs);
    find("#panes").append(pane.root);
    panes.push(pane);
  }
  panes[1].run.selectedIndex = told.runs.length - 1;
  for (const name of ["prompt", "temperature", "top_k", "top_p"]) find(`#${name}`).addEventListener("input", lookAll);
  find("#form").addEventListener("submit", (event) => { event.preventDefault(); sampleAll(); });
  find("#stop").addEventListener("click", () => panes.forEach((pane) => pane.stop()));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") panes.forEach((pane) => pane.stop());
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); sampleAll(); }
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width === innerWidth) return;
    width = innerWidth;
    for (const pane of panes) pane.drawMaps();
  });
  showValues();
  await Promise.all(panes.map((pane) => pane.look()));
  if (panes.some((pane) => pane.error.textContent)) { // runs of other letters than the page's
    find("#prompt").value = "";
    lookAll();
  }
}

start();
