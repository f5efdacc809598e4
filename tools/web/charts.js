"use strict";
// Charts as SVG text: a histogram against a format's grid, and curves over steps.

function escapeText(text) {
  return String(text).replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c]));
}

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(3));
}

/* Counts of magnitudes over log2, with a line at each value the format has. */
function drawHistogram(values, grid, colour) {
  const W = 480, H = 130, L = 4, B = 20, top = Math.max(...values.histogram, 1);
  const span = values.high - values.low, at = log => L + (log - values.low) / span * (W - 2 * L);
  const step = (W - 2 * L) / values.histogram.length;
  const bars = values.histogram.map((count, i) => count
    ? `<rect x="${(L + i * step).toFixed(1)}" y="${(H - B - count / top * (H - B - 14)).toFixed(1)}" width="${(step - .6).toFixed(1)}" height="${(count / top * (H - B - 14)).toFixed(1)}" fill="${colour}" fill-opacity=".55"/>`
    : "").join("");
  const lines = values.scaled && grid ? grid.map(value => {
    const x = at(Math.log2(value));
    return x < L || x > W - L ? "" : `<line x1="${x.toFixed(1)}" x2="${x.toFixed(1)}" y1="${H - B}" y2="${H - B - 26}" stroke="#1c2733" stroke-width=".8" stroke-opacity=".75"/>`;
  }).join("") : "";
  const ticks = [];
  const every = span > 14 ? 4 : 2;
  for (let p = Math.ceil(values.low / every) * every; p <= values.high; p += every) {
    ticks.push(`<text x="${at(p).toFixed(1)}" y="${H - 6}" text-anchor="middle">2^${p}</text>`);
  }
  const unit = values.scaled ? "magnitude over the block's scale; lines: what the format can hold" : "magnitude";
  return `<svg class="histogram" viewBox="0 0 ${W} ${H}" width="100%" role="img"><text x="${L}" y="10">${unit}</text>${bars}${lines}<line x1="${L}" x2="${W - L}" y1="${H - B}" y2="${H - B}" stroke="#b8c2cf"/>${ticks.join("")}</svg>`;
}

/* One line for each name in `series`, a list of [step, value]. */
function drawCurves(series, label) {
  const W = 480, H = 240, L = 44, B = 30, T = 24;
  const names = Object.keys(series), all = names.flatMap(name => series[name]);
  if (!all.length) return "";
  const xs = all.map(p => p[0]), ys = all.map(p => p[1]).filter(Number.isFinite);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1), y0 = Math.min(...ys), y1 = Math.max(...ys, y0 + 1e-9);
  const px = x => L + (x - x0) / (x1 - x0) * (W - L - 10), py = y => H - B - (y - y0) / (y1 - y0) * (H - B - T);
  const colours = ["#2b6cb0", "#c05621", "#2f855a", "#6b46c1"];
  const ticks = [0, .25, .5, .75, 1].map(t => {
    const y = y0 + t * (y1 - y0), x = x0 + t * (x1 - x0);
    return `<line x1="${L}" x2="${W - 10}" y1="${py(y)}" y2="${py(y)}" stroke="#eceff3"/><text x="${L - 5}" y="${py(y) + 3}" text-anchor="end">${number(y)}</text><text x="${px(x)}" y="${H - 14}" text-anchor="middle">${Math.round(x)}</text>`;
  }).join("");
  const paths = names.map((name, i) => {
    const points = series[name].filter(p => Number.isFinite(p[1])).map(p => `${px(p[0]).toFixed(1)},${py(p[1]).toFixed(1)}`);
    return `<polyline points="${points.join(" ")}" fill="none" stroke="${colours[i % 4]}" stroke-width="1.6"/>` +
      `<text x="${W - 14}" y="${T + 12 + 14 * i}" text-anchor="end" style="fill:${colours[i % 4]}">${escapeText(name)}</text>`;
  }).join("");
  return `<svg class="curves" viewBox="0 0 ${W} ${H}" width="100%" role="img">${ticks}${paths}<text x="${W / 2}" y="${H - 1}" text-anchor="middle">step</text><text x="2" y="11">${escapeText(label)}</text></svg>`;
}
