// Asks again and again how the federation is, and shows it. Nothing is kept but what is on the screen.

import { Chart } from "./charts.js";
import { say, showCondition, showLeaders, showNow, showRejections, showStaleness, takeoversOf } from "./page.js";
import { byId, children, clock, duration, element, fill, number, oneDigit } from "./text.js";
import * as workers from "./workers.js";

const EVERY_MS = 1000;
const AFTER_TROUBLE_MS = 3000;
const LAST_ROWS = 20;

let axis = "seconds";
let newest = null;
let isAsking = false;
let seenAt = null;
const quality = new Map();
const activity = [
  new Chart(byId("activity"), "updates a second", { say: oneDigit, sayX: clock, isTime: true }),
  new Chart(byId("activity"), "updates waiting", { say: number, sayX: clock, isTime: true, stroke: "--two" }),
  new Chart(byId("activity"), "commit latency", { say: duration, sayX: clock, isTime: true }),
];

function sayEvaluated(_x, place) {
  const [version, after] = newest.evaluations[place];
  return `version ${number(version)}, after ${duration(after)}`;
}

function showQuality(picture) {
  byId("quality-empty").hidden = picture.evaluations.length > 0;
  const marks = takeoversOf(picture).map((one) => (axis === "seconds" ? one.seconds : one.version)).filter((x) => x !== null);
  const xs = picture.evaluations.map((row) => (axis === "seconds" ? row[1] : row[0]));
  const best = picture.best && { x: picture.best[axis === "seconds" ? "seconds" : "version"], words: `best: version ${number(picture.best.version)}` };
  picture.metrics.forEach((name, place) => {
    if (!quality.has(name)) {
      quality.set(name, new Chart(byId("quality"), name, { say: number, sayX: sayEvaluated, stroke: place % 2 ? "--two" : "--one" }));
    }
    quality.get(name).show(xs, picture.evaluations.map((row) => row[2 + place]), marks, best);
  });
  const heads = ["version", "after", ...picture.metrics];
  const cells = children(byId("evaluations-head"), heads.length, () => element("th", "", { scope: "col" }));
  heads.forEach((word, place) => { cells[place].textContent = word; });
  const rows = picture.evaluations.slice(-LAST_ROWS).reverse();
  fill(byId("evaluations"), rows.map(([version, after, ...values]) => [number(version), duration(after), ...values.map(number)]));
}

function showActivity(picture) {
  const marks = takeoversOf(picture).map((one) => one.at).filter((at) => at !== null);
  const xs = picture.activity.map((row) => row[0]);
  activity.forEach((chart, place) => chart.show(xs, picture.activity.map((row) => row[1 + place]), marks));
}

function show(picture) {
  newest = picture;
  showCondition(picture);
  showNow(picture);
  showQuality(picture);
  showActivity(picture);
  showStaleness(picture.staleness);
  showRejections(picture);
  showLeaders(picture);
}

async function read(path) {
  const answer = await fetch(path, { cache: "no-store" }).catch(() => {
    throw new Error("fluffle dashboard does not answer: if it has ended, what it printed says why");
  });
  if (answer.status === 403) throw new Error("fluffle dashboard was restarted: open the address that it has printed");
  if (!answer.ok) throw new Error(`fluffle dashboard answers ${answer.status}`);
  return answer.json();
}

async function ask() {
  if (isAsking) return true;
  isAsking = true;
  try {
    const [picture, table] = await Promise.all([read("api/state"), read(`api/workers?${workers.query()}`)]);
    seenAt = Date.now() / 1000;
    show(picture);
    workers.show(table);
    return true;
  } catch (error) {
    const last = seenAt === null ? "" : `; this is how it was at ${clock(seenAt)}`;
    say(`${error.message}${last}`, "bad");
    return false;
  } finally {
    isAsking = false;
  }
}

async function keepAsking() {
  for (;;) {
    const isWell = await ask();
    await new Promise((done) => setTimeout(done, isWell ? EVERY_MS : AFTER_TROUBLE_MS));
    // Nobody looks: nothing is asked until somebody does.
    if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}

for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => {
    axis = button.dataset.axis;
    for (const each of document.querySelectorAll("[data-axis]")) each.setAttribute("aria-pressed", String(each === button));
    if (newest) showQuality(newest);
  });
}
workers.prepare(ask);
keepAsking();
