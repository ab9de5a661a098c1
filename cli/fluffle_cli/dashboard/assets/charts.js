// Curves, drawn by uPlot (vendor/). Each is a figure whose caption and label say in words what it shows.

import { element, write } from "./text.js";

const HEIGHT = 200;
const charts = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Chart {
  /** Add a figure to `parent`; `say` turns a value into words, `sayX` an x and its place, `isTime` says that x is Unix seconds. */
  constructor(parent, title, { say, sayX, isTime = false, stroke = "--one" }) {
    this.title = title;
    this.say = say;
    this.sayX = sayX;
    this.isTime = isTime;
    this.stroke = stroke;
    this.marks = [];
    this.best = null;
    this.said = [];
    this.data = [[], []];
    this.figure = element("figure");
    const caption = element("figcaption");
    // No <output>, which a screen reader reads out whenever it changes: once a second.
    this.value = element("span", "", { class: "value" });
    caption.append(element("span", title), this.value);
    this.plot = element("div", "", { class: "plot", role: "img" });
    this.figure.append(caption, this.plot);
    parent.append(this.figure);
    this.width = 0;
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.plot);
    charts.add(this);
  }

  /**
   * Show a curve, a vertical line at each of `marks`, and one with its words at `best`, if there is one.
   * Where a value is not finite, it is a text.
   */
  show(xs, ys, marks, best = null) {
    this.said = ys;
    this.data = [xs, ys.map((y) => (typeof y === "number" ? y : null))];
    this.marks = marks;
    this.best = best;
    if (!this.drawn) this.draw();
    else this.drawn.setData(this.data);
    this.caption(this.drawn.cursor.idx);
  }

  fit() {
    const width = this.plot.clientWidth;
    if (!this.drawn || !width || width === this.width) return;
    this.width = width;
    this.drawn.setSize({ width, height: HEIGHT });
  }

  draw() {
    this.drawn?.destroy();
    this.width = this.plot.clientWidth || 320;
    const ink = colour("--faint");
    const axis = { stroke: ink, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    this.drawn = new uPlot(
      {
        width: this.width,
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
        scales: { x: { time: this.isTime } },
        axes: [
          // A date is a line of its own.
          this.isTime ? { ...axis, values: (_plot, ticks) => ticks.map((tick) => this.sayX(tick).replace(", ", "\n")), space: 80 } : axis,
          { ...axis, size: 60, values: (_plot, ticks) => ticks.map((tick) => this.say(tick)) },
        ],
        series: [{}, { stroke: colour(this.stroke), width: 2, spanGaps: true, points: { show: false } }],
        hooks: { draw: [(plot) => this.drawMarks(plot)], setCursor: [(plot) => this.caption(plot.cursor.idx)] },
      },
      this.data,
      this.plot,
    );
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--mark");
    ctx.setLineDash([4, 4]);
    const lineAt = (mark) => {
      const x = plot.valToPos(mark, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) return null;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      return x;
    };
    this.marks.forEach(lineAt);
    if (this.best !== null) {
      ctx.strokeStyle = ctx.fillStyle = colour("--good");
      ctx.setLineDash([]);
      const x = lineAt(this.best.x);
      ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
      if (x !== null) ctx.fillText(` ${this.best.words} `, x, bbox.top + 14 * devicePixelRatio);
    }
    ctx.restore();
  }

  /** Say the value under the pointer, or else the newest. */
  caption(place) {
    const [xs] = this.data;
    const ys = this.said;
    // A curve that was full has fewer points than before.
    const isUnderPointer = place != null && place < ys.length;
    let at = isUnderPointer ? place : ys.length - 1;
    while (!isUnderPointer && at > 0 && ys[at] === null) at -= 1;
    const text = at < 0 || ys[at] == null ? "nothing yet" : `${this.say(ys[at])} (${this.sayX(xs[at], at)})`;
    write(this.value, text);
    const known = ys.filter((y) => typeof y === "number");
    const range = known.length ? `, from ${this.say(Math.min(...known))} to ${this.say(Math.max(...known))}` : "";
    this.plot.setAttribute("aria-label", `Curve of ${this.title}: ${text}${range}${this.best ? `, ${this.best.words}` : ""}`);
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) if (chart.drawn) chart.draw();
});
