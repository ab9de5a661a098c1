// The page of a sweep of simulations: a strip with a dot for each seed and a line at the median, curves, and the tables.

import { compare, section, tableOf } from "./sections.js";
import { byId, duration, element, number, write } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const TICKS = 5;
// In percent of a strip's width: dots stand between these, and what never held beyond them.
const [FROM, TO, BEYOND] = [2, 90, 97];
const sweep = JSON.parse(byId("run").textContent);

function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

/** Return the place of a value in percent; null stands for a run that never held its target. */
function placeIn(low, high) {
  return (value) => (value === null ? BEYOND : high > low ? FROM + ((TO - FROM) * (value - low)) / (high - low) : FROM);
}

function strip(row, place) {
  const drawn = shape("svg", { class: "strip", role: "img", "aria-label": `${row.name}: ${row.says}` });
  const known = row.values.map(([, value]) => place(value));
  drawn.append(shape("line", { x1: `${Math.min(...known)}%`, x2: `${Math.max(...known)}%`, y1: "50%", y2: "50%", class: "range" }));
  for (const [seed, value] of row.values) {
    const dot = shape("circle", { cx: `${place(value)}%`, cy: "50%", r: 4, class: value === null ? "never" : "dot" });
    dot.append(shape("title", {}, `seed ${seed}: ${value === null ? sweep.never : number(value)}`));
    drawn.append(dot);
  }
  const at = `${place(row.median)}%`;
  drawn.append(shape("line", { x1: at, x2: at, y1: "10%", y2: "90%", class: "median" }));
  return drawn;
}

function axis(low, high, place, hasNever) {
  const drawn = shape("svg", { class: "strip", "aria-hidden": "true" });
  for (let tick = 0; tick < TICKS; tick += 1) {
    const value = low + ((high - low) * tick) / (TICKS - 1);
    drawn.append(shape("text", { x: `${place(value)}%`, y: "60%", "text-anchor": tick ? "middle" : "start" }, number(Number(value.toPrecision(3)))));
  }
  if (hasNever) drawn.append(shape("text", { x: "100%", y: "60%", "text-anchor": "end" }, "never"));
  return drawn;
}

function strips({ title, from, rows }) {
  const made = section(title);
  const values = rows.flatMap((row) => row.values.map(([, value]) => value));
  const known = values.filter((value) => value !== null);
  const [low, high] = [from ?? Math.min(...known), Math.max(...known)];
  const place = placeIn(low, high);
  const { wide, body } = tableOf(title, ["settings", "each dot is one seed, the line is the median", "median (range)"]);
  for (const row of rows) {
    const [line, cell] = [element("tr"), element("td", "", { class: "strips" })];
    cell.append(strip(row, place));
    line.append(element("td", row.name), cell, element("td", row.says));
    body.append(line);
  }
  const [line, cell] = [element("tr"), element("td")];
  if (known.length) cell.append(axis(low, high, place, known.length < values.length));
  line.append(element("td"), cell, element("td"));
  body.append(line);
  made.append(wide);
  return made;
}

function curves() {
  const made = section("Curves");
  made.id = "curves";
  document.querySelector("main").append(made);
  made.append(element("p", "Of each of the best combinations, the run that is in the middle."));
  const title = `${sweep.metric} on held-out data, over virtual seconds`;
  compare(made, title, sweep.curves, sweep.lines, [], { say: number, sayX: duration });
}

document.body.classList.add("report");
document.title = sweep.title;
write(byId("title"), sweep.title);
const main = document.querySelector("main");
const results = section("Results", ...sweep.verdict.map((text) => element("p", text)), tableOf("Results", ...sweep.results).wide);
results.id = "results";
main.append(results, ...sweep.strips.map(strips));
if (sweep.curves.length) curves();
if (sweep.failures.length) main.append(section("Failed", tableOf("Failed runs", ["settings", "seed", "error"], sweep.failures).wide));
main.append(section("Settings of all runs", tableOf("Settings", ["setting", "value"], sweep.settings).wide));
