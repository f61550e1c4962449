// Points on a grid of degrees. Near enough to a map for a region: a degree of longitude is as long
// as it is at the middle of what is shown.
const SVG = "http://www.w3.org/2000/svg";
const METRES = 111320; // In a degree of latitude.
const MARGIN = 44;
const LEAST = 0.01; // Degrees across, however near the points are to each other.
const ARROW = "M0,-11 L7.5,8 L0,4 L-7.5,8 Z";
const DOT = "M-6,0 a6,6 0 1,0 12,0 a6,6 0 1,0 -12,0";
const states = new WeakMap();

export function drawMap(tile, content) {
  const ground = tile.querySelector(".ground");
  const state = states.get(tile) ?? { marks: new Map(), colours: [], drawnAt: performance.now() };
  states.set(tile, state);
  const pace = Math.min(2, Math.max(0.2, (performance.now() - state.drawnAt) / 1000));
  state.drawnAt = performance.now();
  state.svg ??= ground.appendChild(make("svg", { role: "img" }));
  for (const name of ["grid", "trails", "places", "points"]) {
    state[name] ??= state.svg.appendChild(make("g", { class: name }));
  }
  const size = [ground.clientWidth, ground.clientHeight];
  const view = project(frame(state, content), size);
  colour(state, content, tile.querySelector(".legend"));
  state.svg.style.setProperty("--pace", `${pace}s`);
  state.svg.setAttribute("aria-label", `${content.points.length} points`);
  const taken = [];
  drawGrid(state.grid, view, size);
  drawTrails(state, content, view);
  movePoints(state, content.points, view, taken);
  drawPlaces(state.places, content.places, view, taken);
}

// The bounds stay while the points are well inside, so that the ground does not tremble.
function frame(state, { points, trails, places }) {
  const trodden = points.flatMap((point) => trails[point.label] ?? []);
  const all = [...points, ...places].map((each) => each.at).concat(trodden);
  if (!all.length) return state.bounds ?? [[0, 0], [LEAST, LEAST]];
  const seen = [0, 1].map((i) => [Math.min(...all.map((at) => at[i])), Math.max(...all.map((at) => at[i]))]);
  const now = [0, 1].map((end) => seen.map((range) => range[end]));
  const was = state.bounds;
  const fits = was && seen.every(([low, high], i) => low >= was[0][i] && high <= was[1][i]);
  const wide = was && seen.some(([low, high], i) => high - low > (was[1][i] - was[0][i]) / 2.5);
  if (!(fits && wide)) state.bounds = padded(now);
  return state.bounds;
}

function padded([low, high]) {
  const middle = low.map((value, i) => (value + high[i]) / 2);
  const half = low.map((value, i) => Math.max((high[i] - value) * 0.55, LEAST / 2));
  return [middle.map((value, i) => value - half[i]), middle.map((value, i) => value + half[i])];
}

function project([low, high], [width, height]) {
  const [latitude, longitude] = low.map((value, i) => (value + high[i]) / 2);
  const squeeze = Math.max(0.05, Math.cos((latitude * Math.PI) / 180));
  const scale = Math.min(
    (height - 2 * MARGIN) / (high[0] - low[0]),
    (width - 2 * MARGIN) / ((high[1] - low[1]) * squeeze),
  );
  const to = ([lat, lon]) => [
    width / 2 + (lon - longitude) * squeeze * scale,
    height / 2 - (lat - latitude) * scale,
  ];
  const from = ([x, y]) => [
    latitude - (y - height / 2) / scale,
    longitude + (x - width / 2) / (squeeze * scale),
  ];
  return { to, from, scale, squeeze };
}

function drawGrid(place, view, [width, height]) {
  place.replaceChildren();
  const [top, left] = view.from([0, 0]);
  const [bottom, right] = view.from([width, height]);
  for (const [i, from, to, pixels] of [[0, bottom, top, view.scale], [1, left, right, view.scale * view.squeeze]]) {
    const step = nice(110 / pixels);
    const digits = Math.max(0, Math.ceil(-Math.log10(step)));
    for (let at = Math.ceil(from / step); at * step <= to; at += 1) {
      const [x, y] = view.to(i ? [top, at * step] : [at * step, left]);
      const line = i ? { x1: x, x2: x, y1: 0, y2: height } : { x1: 0, x2: width, y1: y, y2: y };
      place.append(make("line", { class: "degree", ...line }));
      const label = degrees(at * step, digits, i ? "EW" : "NS");
      const corner = i ? { x: x + 4, y: 14 } : { x: 6, y: y - 5 };
      if (i ? x > 60 && x < width - 60 : y > 30) place.append(text(label, { class: "degrees", ...corner }));
    }
  }
  drawScale(place, view, width, height);
}

function drawScale(place, view, width, height) {
  const metres = niceBelow((METRES / view.scale) * Math.min(140, width / 3));
  const long = (metres / METRES) * view.scale;
  const [x, y] = [width - 14 - long, height - 14];
  place.append(make("path", { class: "scale", d: `M${x},${y - 5} V${y} H${x + long} V${y - 5}` }));
  const label = metres < 1000 ? `${metres} m` : `${metres / 1000} km`;
  place.append(text(label, { class: "degrees", x: x + long / 2, y: y - 8, "text-anchor": "middle" }));
}

function drawTrails(state, { points, trails }, view) {
  const lines = points.filter((point) => trails[point.label]).map((point) => {
    const line = [...trails[point.label], point.at].map((at) => view.to(at).map((n) => n.toFixed(1)).join(","));
    const drawn = make("polyline", { class: "trail", points: line.join(" ") });
    drawn.style.setProperty("--mark", state.mark(point));
    return drawn;
  });
  state.trails.replaceChildren(...lines);
}

function movePoints(state, points, view, taken) {
  for (const point of points) {
    const mark = state.marks.get(point.label) ?? newMark(state, point.label);
    const [x, y] = view.to(point.at);
    mark.style.setProperty("--mark", state.mark(point));
    mark.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
    const [shape, label, about] = mark.children;
    shape.setAttribute("d", point.heading === null ? DOT : ARROW);
    shape.setAttribute("transform", `rotate(${point.heading ?? 0})`);
    label.textContent = isFree(taken, x, y, point.label) ? point.label : "";
    about.textContent = [point.label, ...point.about].join("\n");
  }
  const there = new Set(points.map((point) => point.label));
  for (const [label, mark] of state.marks) {
    if (!there.has(label)) {
      mark.remove();
      state.marks.delete(label);
    }
  }
}

function newMark(state, label) {
  const mark = make("g", { class: "point", "data-label": label });
  mark.append(make("path", {}), text("", { x: 11, y: 4 }), make("title", {}));
  state.marks.set(label, state.points.appendChild(mark));
  return mark;
}

function drawPlaces(place, places, view, taken) {
  const drawn = places.map((each) => {
    const [x, y] = view.to(each.at);
    const mark = make("g", { class: "place" });
    mark.append(make("rect", { x: x - 3.5, y: y - 3.5, width: 7, height: 7, rx: 1.5 }));
    if (isFree(taken, x, y, each.label)) mark.append(text(each.label, { x: x + 8, y: y + 4 }));
    const about = make("title", {});
    about.textContent = each.label;
    mark.append(about);
    return mark;
  });
  place.replaceChildren(...drawn);
}

// Whether a label has room beside its point; if so, it takes it.
function isFree(taken, x, y, label) {
  const box = [x - 8, y - 8, x + 14 + label.length * 7, y + 8];
  if (taken.some((each) => box[0] < each[2] && box[2] > each[0] && box[1] < each[3] && box[3] > each[1])) return false;
  taken.push(box);
  return true;
}

function colour(state, { points, colours }, legend) {
  for (const each of [...new Set(points.map((point) => point.colour))].sort()) {
    if (each && !state.colours.includes(each)) state.colours.push(each);
  }
  const of = (value) => `var(--${colours[value] ?? `categories-${state.colours.indexOf(value) % 8}`})`;
  state.mark = (point) => (point.colour ? of(point.colour) : "var(--accent)");
  legend.replaceChildren(...state.colours.map((value) => {
    const entry = document.createElement("span");
    entry.textContent = value;
    entry.style.setProperty("--mark", of(value));
    return entry;
  }));
}

function nice(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least);
}

function niceBelow(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((each) => each * power).find((each) => each <= most);
}

function degrees(value, digits, [positive, negative]) {
  return `${Math.abs(value).toFixed(digits)}° ${value < 0 ? negative : positive}`;
}

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function text(content, attributes) {
  const element = make("text", attributes);
  element.textContent = content;
  return element;
}
