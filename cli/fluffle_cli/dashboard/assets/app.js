// The live page: asks again and again how the federation is, and shows it. Nothing is kept but what is on the screen.

import { Chart } from "./charts.js";
import { say, showFederation } from "./page.js";
import { takeoversOf } from "./quality.js";
import { byId, clock, duration, number, oneDigit } from "./text.js";
import { prepareWorkers, showWorkers, wanted } from "./workers.js";

const EVERY_MS = 1000;
const AFTER_TROUBLE_MS = 3000;

let isAsking = false;
let seenAt = null;
const activity = [
  new Chart(byId("activity"), "updates a second", { say: oneDigit, sayX: clock, isTime: true }),
  new Chart(byId("activity"), "messages waiting", { say: number, sayX: clock, isTime: true, curves: [{ stroke: "--two" }] }),
  new Chart(byId("activity"), "commit latency", { say: duration, sayX: clock, isTime: true }),
];

function showActivity(picture) {
  const marks = takeoversOf(picture).map((one) => one.at).filter((at) => at !== null);
  const xs = picture.activity.map((row) => row[0]);
  activity.forEach((chart, place) => chart.show(xs, [picture.activity.map((row) => row[1 + place])], marks));
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
    const query = new URLSearchParams(wanted).toString();
    const [picture, table] = await Promise.all([read("api/state"), read(`api/workers?${query}`)]);
    seenAt = Date.now() / 1000;
    showFederation(picture);
    showActivity(picture);
    showWorkers(table);
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

prepareWorkers(ask);
keepAsking();
