// Keeps the page as its server says it is: one connection, from which tiles come as they change.
import { drawMap } from "./map.js";

const settings = JSON.parse(document.getElementById("settings").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const tiles = [...document.querySelectorAll("[data-tile]")];
const charts = new Map();
const maps = new Map();
const AGAIN = 2000;
const SILENCE = 15000;

let source;
let watch;
let lostAt;
let head = {};
let clock = 0; // What the server's clock is ahead of this one.

const say = (id, text) => { document.getElementById(id).textContent = text; };
const now = () => Date.now() + clock;

function connect() {
  clearTimeout(watch);
  source?.close();
  if (document.hidden) return;
  source = new EventSource(`${location.pathname}/events`);
  source.onmessage = (event) => { heard(); apply(JSON.parse(event.data)); };
  source.addEventListener("here", heard);
  source.onerror = lose;
  watch = setTimeout(lose, SILENCE);
}

function heard() {
  lostAt = undefined;
  clearTimeout(watch);
  watch = setTimeout(lose, SILENCE);
}

function lose() {
  source.close();
  clearTimeout(watch);
  lostAt ??= new Date();
  tell("lost", "Not connected", `Not connected since ${time(lostAt)}. Trying again.`);
  watch = setTimeout(connect, AGAIN);
  fetch(location.pathname, { redirect: "manual" }).then((answer) => {
    if (answer.status === 401) {
      tell("lost", "Not connected", "The token is another one now: open the address that tarn live printed.");
    }
  }, () => {});
}

function tell(state, word, trouble) {
  document.body.dataset.state = state;
  say("state", word);
  const place = document.getElementById("trouble");
  if (place.textContent !== trouble) place.textContent = trouble;
  place.hidden = !trouble;
}

function apply(message) {
  head = { ...head, trouble: undefined, ...message.head };
  clock = head.now - Date.now();
  for (const [number, content] of Object.entries(message.tiles)) show(tiles[number], content);
  age();
}

function show(tile, content) {
  const problem = tile.querySelector(".problem");
  problem.textContent = content.error ?? "";
  problem.hidden = !content.error;
  tile.classList.toggle("failed", Boolean(content.error));
  if (content.html !== undefined) replace(tile.querySelector(".content"), content.html);
  if (content.rows) fill(tile, content);
  if (content.points) {
    maps.set(tile, content);
    drawMap(tile, content);
  }
}

function replace(place, html) {
  const at = place.querySelector(".scroll");
  const [left, top] = [at?.scrollLeft, at?.scrollTop];
  place.innerHTML = html;
  place.querySelector(".scroll")?.scrollTo(left ?? 0, top ?? 0);
}

function fill(tile, content) {
  const rows = content.rows.map((row) => {
    const dated = content.dates.map((name) => [name, row[name] && new Date(row[name])]);
    return { ...row, ...Object.fromEntries(dated) };
  });
  const chart = charts.get(tile) ?? { turn: Promise.resolve() };
  charts.set(tile, { ...chart, rows, tile });
  refill(charts.get(tile));
}

// One change of a chart at a time: Vega draws in the background.
function refill(chart) {
  chart.turn = chart.turn.then(async () => {
    try {
      chart.view ??= await embed(chart.tile.querySelector(".drawing"));
      await chart.view.data("rows", chart.rows).runAsync();
      chart.tile.dataset.drawn = "true";
    } catch (error) {
      show(chart.tile, { error: `This chart could not be drawn: ${error.message}` });
      console.error(error);
    }
  });
}

async function embed(place) {
  const theme = settings.themes[dark.matches ? "dark" : "light"];
  const legend = { ...theme.legend, columns: Math.max(1, Math.floor(place.clientWidth / 130)) };
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  // Without ast Vega would make functions of text, which the page's policy forbids.
  const options = { config: { ...theme, legend }, renderer: "svg", actions: false, ast: true, logLevel: 1 };
  return (await vegaEmbed(place, spec, options)).view;
}

function redraw() {
  for (const chart of charts.values()) {
    chart.turn = chart.turn.then(() => { chart.view?.finalize(); chart.view = undefined; });
    refill(chart);
  }
  for (const [tile, content] of maps) drawMap(tile, content);
}

function age() {
  for (const each of document.querySelectorAll("time[data-at]")) {
    each.textContent = `${time(new Date(each.dataset.at))}, ${ago(Date.parse(each.dataset.at))}`;
  }
  if (!head.streams && !head.trouble) return;
  if (head.streams) ages(head.streams);
  if (lostAt) return;
  if (head.trouble) {
    tell("blind", "Cannot read", `The lake cannot be read: ${head.trouble}`);
    return;
  }
  const late = head.streams.filter((each) => now() - each.at > settings.staleAfter);
  const said = late.map((each) => `${each.name}: last commit ${ago(each.at)}`);
  tell("live", "Live", said.length ? `Behind: ${said.join(", ")}.` : "");
}

function ages(streams) {
  const newest = Math.max(...streams.map((each) => each.at));
  say("age", streams.length ? ago(newest) : "no stream");
  document.getElementById("age").classList.toggle("late", now() - newest > settings.staleAfter);
  say("release", head.release);
  const each = streams.map((stream) => `${stream.name} ${ago(stream.at)}`);
  say("streams", `Streams as they are now: ${each.join(", ") || "none"}. Other tables as in release ${head.release}.`);
}

function ago(at) {
  const seconds = Math.max(0, Math.round((now() - at) / 1000));
  if (seconds < 100) return `${seconds} s ago`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}

function time(at) {
  return `${at.toISOString().slice(11, 19)} UTC`;
}

let width = innerWidth;
let timer;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(timer);
  timer = setTimeout(redraw, 150);
});
dark.addEventListener("change", redraw);
document.addEventListener("visibilitychange", connect);
setInterval(age, 1000);
connect();
