"use strict";
// The panel: one product, one module, or the pages on the whole model.

const percent = share => (100 * share).toFixed(share < .1 ? 2 : 1) + "%";

function flopsText(flops) {
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (flops < 1000) return `${+flops.toPrecision(3)} ${unit}FLOP`;
    flops /= 1000;
  }
  return `${+flops.toPrecision(4)} PFLOP`;
}

function chip(format) { return `<span class="chip" style="background:${DATA.colours[format]}">${escapeText(format)}</span>`; }

function pre(text, wrap) { return `<pre${wrap ? ' class="wrap"' : ""}>${escapeText(text)}</pre>`; }

function sitePage(index) {
  const site = DATA.sites[index], [batch, m, n, k] = site.shape;
  const sizes = k ? `${batch > 1 ? batch + " x " : ""}${m} x ${n} x ${k} (m x n x k, k summed)` : "sizes vary";
  let html = `<h2 id="site">${escapeText(site.name)}</h2>${chip(site.format)} ${escapeText(site.product)}
    <table><tr><th>plan<td>${escapeText(site.plan)}<tr><th>op<td>${escapeText(site.op)}, ${site.dtype}<tr><th>sizes<td>${sizes}
    <tr><th>cost<td>${flopsText(site.flops)}, ${percent(site.flops / (DATA.about.flops || 1))} of a step`;
  if (site.reason) html += `<tr><th>why high<td>${escapeText(site.reason)}`;
  for (const note of site.notes) html += `<tr><th>note<td>${escapeText(note)}`;
  site.shared.forEach((others, i) => {
    if (others.length) html += `<tr><th>shared<td>${escapeText(site.operands[i].kind)}: the same codes serve ${others.map(link).join(", ")}`;
  });
  html += "</table>";
  site.values.forEach((values, i) => {
    if (!values) return;
    const operand = site.operands[i];
    const facts = [["SQNR", values.sqnr === null ? "exact" : values.sqnr.toFixed(1) + " dB"], ["flushed to 0", percent(values.flushed)],
      ["clipped", percent(values.clipped)], ["zero before", percent(values.zeros)], ["largest", number(values.amax)], ["rms", number(values.rms)]];
    html += `<h3>${escapeText(operand.kind)}: ${escapeText(operand.format)}</h3><table class="values"><tr>${facts.map(f => `<th>${f[0]}`).join("")}<tr>${facts.map(f => `<td>${f[1]}`).join("")}</table>` +
      drawHistogram(values, DATA.grids[operand.format], DATA.colours[site.format]);
  });
  for (const [kind, series] of Object.entries(site.telemetry)) {
    html += `<h3>${escapeText(kind)} over the run</h3>${drawCurves({ "SQNR, dB": series.sqnr_db || [] }, "SQNR, dB")}` +
      drawCurves({ "flushed to 0": series.flushed || [], clipped: series.clipped || [] }, "share of elements");
  }
  if (site.status === "quantized" && !site.values.length) html += `<p class="muted">Values were not measured: make the report without --no-values.</p>`;
  html += `<h3>what happens</h3>${pre(DATA.texts[site.picture])}<h3>rules, in order</h3>${pre(DATA.texts[site.rules], true)}`;
  if (site.before) html += `<h3>code before</h3>${pre(site.before, true)}`;
  if (site.after) html += `<h3>code after</h3>${pre(site.after, true)}`;
  return html;
}

function link(name) { return `<a data-site="${escapeText(name)}">${escapeText(name)}</a>`; }

function modulePage(node) {
  const flops = node.all.reduce((sum, i) => sum + DATA.sites[i].flops, 0);
  const rows = node.all.slice(0, 100).map(i => {
    const site = DATA.sites[i], errors = site.values.filter(v => v && v.sqnr !== null).map(v => v.sqnr);
    return `<tr><td>${link(site.name)}<td>${chip(site.format)}<td class="n">${errors.length ? Math.min(...errors).toFixed(1) : ""}<td class="n">${percent(site.flops / (DATA.about.flops || 1))}`;
  }).join("");
  const more = node.all.length > 100 ? `<p class="muted">and ${node.all.length - 100} more</p>` : "";
  return `<h2>${escapeText(node.path || "the model")}</h2><p>${node.all.length} products, ${flopsText(flops)}, ${percent(flops / (DATA.about.flops || 1))} of a step</p>
    <table><tr><th>product<th>format<th>SQNR, dB<th>FLOPs</tr>${rows}</table>${more}`;
}

function costPage() {
  const cost = DATA.cost;
  const rows = Object.entries(cost.formats).sort((a, b) => b[1] - a[1])
    .map(([name, share]) => `<tr><td>${chip(DATA.colours[name] ? name : "high")} ${DATA.colours[name] ? "" : escapeText(name)}<td class="n">${percent(share)}`).join("");
  let html = `<h2>cost of a step</h2><table><tr><th>format<th>share of product FLOPs</tr>${rows}</table>
    <table><tr><td>product FLOPs<td class="n">${flopsText(DATA.about.flops)}<tr><td>of them quantized<td class="n">${percent(cost.quantized)}
    <tr><td>bits of an operand's element, mean<td class="n">${cost.operand_bits.toFixed(2)}
    <tr><td>nodes of the graph, before and after<td class="n">${cost.nodes.join(" and ")}`;
  if (DATA.curves && DATA.curves.step_ratio) html += `<tr><td>step time over ${escapeText(DATA.curves.baseline)}'s<td class="n">${DATA.curves.step_ratio.toFixed(2)}`;
  html += "</table>";
  const worst = DATA.sites.map((site, i) => [Math.min(...site.values.filter(v => v && v.sqnr !== null).map(v => v.sqnr)), i])
    .filter(([error]) => Number.isFinite(error)).sort((a, b) => a[0] - b[0]).slice(0, 15);
  if (worst.length) html += `<h3>the least exact operands</h3><table><tr><th>product<th>SQNR, dB</tr>${worst.map(([e, i]) => `<tr><td>${link(DATA.sites[i].name)}<td class="n">${e.toFixed(1)}`).join("")}</table>`;
  return html;
}

function curvesPage() {
  const curves = DATA.curves;
  let html = `<h2>training</h2>${drawCurves(curves.losses, "training loss, nats per token")}`;
  const held = Object.entries(curves.held_out || {});
  if (held.length) html += `<table><tr><th>policy<th>held-out loss</tr>${held.map(([n, v]) => `<tr><td>${escapeText(n)}<td class="n">${v.toFixed(4)}`).join("")}</table>`;
  if (curves.gap_percent != null) html += `<p>gap to ${escapeText(curves.baseline)}: ${curves.gap_percent.toFixed(2)}%</p>`;
  for (const [name, series] of Object.entries(curves.telemetry || {})) html += `<h3>${escapeText(name)}</h3>${drawCurves(series, name)}`;
  return html;
}
