// Numbers and times in words, and the few ways in which the page writes into itself: always as text, never as markup.

const few = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 4 });
const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export function number(value) {
  if (value === null || value === undefined) return "–";
  // JSON knows no NaN: what is not finite comes as a text.
  if (typeof value === "string") return value;
  return Number.isInteger(value) ? whole.format(value) : few.format(value);
}

export function oneDigit(value) {
  return value === null || value === undefined ? "–" : value.toFixed(1);
}

const BLOCKS = "▁▂▃▄▅▆▇█";

/** Draw numbers as a row of blocks, the lowest as the lowest block, and a "?" for what is not finite. */
export function sparkline(values) {
  const known = values.filter((value) => typeof value === "number");
  const low = Math.min(...known);
  const range = Math.max(...known) - low;
  return values.map((value) => (typeof value !== "number" ? "?" : BLOCKS[range ? Math.round((7 * (value - low)) / range) : 0])).join("");
}

export function share(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${(1000 * seconds).toFixed(0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count.toFixed(unit && count < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Say a time of day, after its date and a comma if that is not today's. */
export function clock(unixSeconds) {
  if (unixSeconds === null) return "before this page was started";
  const at = new Date(1000 * unixSeconds);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${day.format(at)}, ${time}`;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Write text, and only where it changed: whoever reads or has marked it is not disturbed. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Make an element with a text, and attributes that come from this program alone. */
export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Make a parent have so many children, made by `make`, and return them. */
export function children(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
  return [...parent.children];
}

/** Fill the body of a table with rows of texts. Rows and cells stay, so that focus and marks do. */
export function fill(body, rows, numeric = []) {
  const made = children(body, rows.length, () => element("tr"));
  rows.forEach((texts, place) => {
    const cells = children(made[place], texts.length, () => element("td"));
    texts.forEach((text, column) => {
      write(cells[column], text);
      cells[column].classList.toggle("number", numeric.includes(column));
    });
  });
  return made;
}
