// What the live page and a report show of a federation, but for its workers.

import { showQuality } from "./quality.js";
import { showSites } from "./sites.js";
import { byId, bytes, children, clock, duration, element, fill, number, oneDigit, write } from "./text.js";

/** What comes first: at most eight figures, each a key, a word, the value as the program has it, and the same in words. */
function figuresOf(picture) {
  const { metric } = picture;
  return [
    // First, since a phone shows no more than a few at a time.
    ...measuredOf("evaluation", "", picture).filter(([key]) => key === `evaluation_${metric}`),
    ...measuredOf("best", `, the best (${direction(picture.best_by)})`, picture).filter(([key]) => key === `best_${metric}`),
    ["version", "version", picture.version, number(picture.version)],
    ["updates", "updates", picture.updates, number(picture.updates)],
    ["updates_per_s", "updates a second", picture.updates_per_s, oneDigit(picture.updates_per_s)],
    ["workers", "workers in the model", picture.workers_in_model, number(picture.workers_in_model)],
    ["rejected", "refused", picture.rejected, number(picture.rejected)],
    ["updates_waiting", picture.finished ? "came after the end" : "messages waiting",
      picture.queues.updates_waiting, number(picture.queues.updates_waiting)],
  ];
}

/** All other numbers, which are folded away. */
function moreOf(picture) {
  const { metric } = picture;
  const saved = picture.plain_bytes - picture.sent_bytes;
  return [
    ...measuredOf("evaluation", "", picture).filter(([key]) => key !== `evaluation_${metric}`),
    ...measuredOf("best", ", the best", picture).filter(([key]) => key !== `best_${metric}`),
    ["best_by", "the best is by", picture.best_by, bestInWords(picture.best_by)],
    ["training_s", "time since the first update", picture.training_s, duration(picture.training_s)],
    ["elapsed_s", "time with a leader", picture.elapsed_s, duration(picture.elapsed_s)],
    ["term", "term", picture.term, number(picture.term)],
    ["target_held", "evaluations in a row at the target", picture.target_held, number(picture.target_held)],
    ["rejected_waiting", "refused, still kept", picture.queues.rejected_waiting, number(picture.queues.rejected_waiting)],
    ["commit_s", "last commit took", picture.commit_s, duration(picture.commit_s)],
    ["saved_bytes", "saved by the codec", saved,
      saved > 0 ? `${bytes(saved)} of ${bytes(picture.plain_bytes)}` : picture.plain_bytes ? "nothing" : "–"],
    ["parameters", "parameters", picture.parameters, number(picture.parameters)],
    ...privacyOf(picture),
    ...sealedOf(picture),
  ];
}

function privacyOf({ privacy }) {
  if (!privacy) return [];
  const { mechanism, spent, epsilon, delta, most_updates, updates, workers, workers_spent } = privacy;
  return [
    ["epsilon", `epsilon spent (${mechanism}, delta ${delta})`, spent, `${number(spent)} of ${number(epsilon)}`],
    ["most_updates", "most updates of a worker", most_updates, `${number(most_updates)} of ${number(updates)}`],
    ["workers_spent", "workers whose budget is spent", workers_spent, `${number(workers_spent)} of ${number(workers)}`],
  ];
}

function sealedOf({ sealed }) {
  if (!sealed) return [];
  const { key, parameters, sealed_parameters, sum_bytes, range_used, refreshes } = sealed;
  return [
    ["sealed", `sealed with the key ${key.slice(0, 8)}`, sealed_parameters,
      `${number(sealed_parameters)} of ${number(parameters)} parameters`],
    ["sum_bytes", "ciphertexts in each update and version", sum_bytes, bytes(sum_bytes)],
    ["range_used", "range of the ciphertexts that is used", range_used, `${Math.round(100 * range_used)} %`],
    ["refreshes", "times that the sum was encrypted anew", refreshes, number(refreshes)],
  ];
}

function bestInWords(bestBy) {
  if (!bestBy) return "nothing: no direction is known";
  return `${bestBy.slice(0, bestBy.lastIndexOf(":"))}, the ${direction(bestBy)}`;
}

function direction(bestBy) {
  return bestBy.endsWith(":max") ? "highest" : "lowest";
}

function measuredOf(key, which, picture) {
  const measured = picture[key];
  const names = measured ? picture.metrics.filter((name) => name in measured.metrics) : [];
  // Version 0 has no average.
  const averaged = picture.average_decay && measured?.version ? ", averaged" : "";
  return names.map((name) => [
    `${key}_${name}`, `${name} of version ${number(measured.version)}${averaged}${which}`, measured.metrics[name], number(measured.metrics[name]),
  ]);
}

function showFigures(list, figures) {
  const made = children(byId(list), figures.length, () => {
    const group = element("div");
    group.append(element("dt"), element("dd"));
    return group;
  });
  figures.forEach(([key, word, value, text], place) => {
    const [term, shown] = made[place].children;
    write(term, word);
    write(shown, text);
    shown.dataset.key = key;
    shown.dataset.value = JSON.stringify(value);
  });
}

function showNow(picture) {
  const { progress, findings } = picture;
  showFigures("now", figuresOf(picture));
  showFigures("more", moreOf(picture));
  write(byId("progress"), progress.says);
  // The condition says already whether anybody leads, and the line above how the model does.
  const said = findings.filter((one) => one.kind !== "no-aggregator" && one.says !== progress.says);
  const items = children(byId("findings"), said.length, () => element("li"));
  said.forEach((one, place) => write(items[place], `${one.says} ${one.do}`));
}

function showCondition(picture) {
  const { trouble, leader } = picture;
  write(byId("federation"), picture.federation);
  document.title = `${picture.federation}${picture.version === null ? "" : `: version ${picture.version}`}`;
  write(byId("strategy"), picture.strategy);
  const said = trouble ? `not connected: ${trouble}`
    : picture.finished ? `finished: ${picture.finished}`
    : picture.closing ? `ending, while its last model is evaluated: ${picture.closing}`
    : picture.version === null ? "no version yet: an aggregator publishes version 0 when it takes the lead"
    : picture.queues.aggregator_active ? `${leader || "an aggregator"} leads, term ${picture.term}`
    : "no aggregator is active";
  say(said, trouble || (!picture.finished && !picture.queues.aggregator_active) ? "bad" : "good");
}

export function say(text, mood) {
  const condition = byId("condition");
  write(condition, text);
  condition.className = mood;
}

function withBar(cell, text, part, kind) {
  if (cell.children.length < 2) cell.replaceChildren(element("span"), element("span", "", { class: `bar ${kind}`, "aria-hidden": "true" }));
  const [words, bar] = cell.children;
  write(words, text);
  bar.style.width = `${100 * part}%`;
}

function showStaleness(rows) {
  byId("staleness-empty").hidden = rows.length > 0;
  const mostUpdates = Math.max(1, ...rows.map(([, count]) => count));
  const mostWeight = Math.max(...rows.map(([, , weight]) => weight ?? 0)) || 1;
  const made = children(byId("staleness"), rows.length, () => {
    const row = element("tr");
    row.append(element("th", "", { scope: "row" }), element("td"), element("td"));
    return row;
  });
  rows.forEach(([words, count, weight], place) => {
    const [late, updates, mean] = made[place].children;
    write(late, words);
    withBar(updates, number(count), count / mostUpdates, "");
    withBar(mean, weight === null ? "–" : number(weight), (weight ?? 0) / mostWeight, "two");
  });
}

/** Say how many refused messages are known by their number alone. */
function sayUnheard({ rejected, reasons }, where) {
  const heard = Object.values(reasons).reduce((sum, count) => sum + count, 0);
  const unheard = rejected - heard;
  if (unheard <= 0) return heard ? "" : "Nothing was refused.";
  return `${number(unheard)} ${heard ? "more " : ""}refused ${where}`;
}

function showRejections(picture, unheard) {
  const reasons = Object.entries(picture.reasons);
  const late = picture.after_the_end;
  write(byId("rejections-unheard"), sayUnheard(picture, unheard));
  write(byId("after-the-end"), late ? `Came after the end, and not counted above: ${number(late)}.` : "");
  byId("reasons-table").hidden = reasons.length === 0;
  fill(byId("reasons"), reasons.map(([reason, count]) => [reason, number(count)]), [1]);
  const items = children(byId("rejections"), picture.refusals.length, () => element("li"));
  picture.refusals.forEach((one, place) => {
    write(items[place], `${one.at ? `${clock(one.at)} ` : ""}${one.reason}${one.name ? ` from ${one.name}` : ""}: ${one.detail}`);
  });
}

function showLeaders(picture) {
  const { leader, standbys, terms } = picture;
  const nobody = picture.knows_standbys ? "Nobody stands by: if the leader dies, updates wait until another aggregator is started."
    : "No standby has been heard of since this page was started.";
  const stand = standbys.length ? `Standing by: ${standbys.join(", ")}.` : nobody;
  const lead = leader ? `Leader: ${leader}.` : "The leader's name is known as soon as it says something.";
  const ended = leader ? `The last leader was ${leader}.` : "Nobody leads after the end.";
  write(byId("leader"), picture.finished ? ended : `${lead} ${stand}`);
  const helpers = Object.entries(picture.helpers ?? {}).sort();
  const sum = picture.last_sum;
  const opened = sum && sum.helpers.length ? ` Sum ${sum.number} was opened in ${sum.opened_s.toFixed(3)} s.` : "";
  write(byId("helpers"), helpers.length ? `Helpers: ${helpers.map((one) => one.join(" ")).join("; ")}.${opened}` : "");
  const rows = [...terms].reverse().map((one) => {
    const after = one.seconds === null ? "" : `, after ${duration(one.seconds)}`;
    return [number(one.term), one.leader ?? "–", number(one.version), `${clock(one.at)}${after}`];
  });
  fill(byId("terms"), rows, [0, 2]);
}

/** Show all but the activity and the workers; `unheard` says of refused messages why only their number is known. */
export function showFederation(
  picture, unheard = "while nobody listened here: fluffle rejected list shows what is kept.",
) {
  showCondition(picture);
  showNow(picture);
  showQuality(picture);
  showSites(picture);
  showStaleness(picture.staleness);
  showRejections(picture, unheard);
  showLeaders(picture);
}
