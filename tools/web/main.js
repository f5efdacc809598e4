"use strict";
// Ties data, graph and panel together.

performance.mark("start");
const DATA = JSON.parse(document.getElementById("data").textContent);
const { root, index } = makeTree(DATA.sites);
const numbers = new Map(DATA.sites.map((site, i) => [site.name, i]));
const folded = new Set([...index.values()].filter(isBlock).map(node => node.path));
const forward = DATA.edges.filter(([a, b]) => DATA.sites[a].role === "fprop" && DATA.sites[b].role === "fprop");
const element = id => document.getElementById(id);
let selected = null;

const cy = cytoscape({
  container: element("graph"), elements: [], minZoom: .02, maxZoom: 3,
  hideEdgesOnViewport: DATA.sites.length > 800, boxSelectionEnabled: false, autoungrabify: true,
  style: [
    { selector: "node", style: { shape: "round-rectangle", width: "data(w)", height: "data(h)", label: "data(label)", "font-size": 11, color: "#fff", "text-valign": "center", "background-color": "data(colour)", "border-width": 0, "min-zoomed-font-size": 5, "z-index-compare": "manual", "z-index": 60 } },
    { selector: "node[stops]", style: { "background-fill": "linear-gradient", "background-gradient-direction": "to-right", "background-gradient-stop-colors": "data(stops)", "background-gradient-stop-positions": "data(places)", "font-size": 13, "text-outline-width": 1, "text-outline-color": "#334155", "text-outline-opacity": .6 } },
    { selector: "node.frame", style: { "background-color": "#fff", "border-width": 1, "border-color": "#c3ccd8", color: "#334155", "text-valign": "top", "text-margin-y": 17, "font-size": 12, "corner-radius": 8, "z-index": "data(depth)" } },
    { selector: "edge", style: { width: 1.4, "line-color": "#9fb0c3", "target-arrow-color": "#9fb0c3", "target-arrow-shape": "triangle", "arrow-scale": .8, "curve-style": "straight", "z-index": 50 } },
    { selector: "edge.back", style: { "line-color": "#e3b5a4", "target-arrow-color": "#e3b5a4", "line-style": "dashed" } },
    { selector: ".picked", style: { "border-width": 4, "border-color": "#111827" } },
  ],
});

/* The box that stands for a product now: itself, or the outermost folded module it is in. */
function boxOf(site) {
  let node = index.get(DATA.sites[site].module), box = null;
  for (; node; node = node.parent) if (node.folded) box = node;
  return box ? "m:" + box.path : "s:" + site;
}

function holderOf(site) {
  const box = boxOf(site);
  const node = index.get(DATA.sites[site].module);
  return box.startsWith("m:") || !isLeaf(node) ? box : "m:" + node.path;
}

function shares(node) {
  const sums = new Map();
  for (const i of node.all) sums.set(DATA.sites[i].format, (sums.get(DATA.sites[i].format) || 0) + (DATA.sites[i].flops || 1));
  const whole = [...sums.values()].reduce((a, b) => a + b, 0), stops = [], places = [];
  let at = 0;
  for (const [format, flops] of [...sums].sort((a, b) => b[1] - a[1])) {
    stops.push(DATA.colours[format], DATA.colours[format]);
    places.push(`${100 * at}%`, `${100 * (at += flops / whole)}%`);
  }
  return { stops: stops.join(" "), places: places.join(" ") };
}

function build() {
  measure(root, folded, forward);
  const elements = [];
  const place = (node, x, y, depth) => {
    const id = "m:" + node.path, position = { x: x + node.w / 2, y: y + node.h / 2 };
    if (node.folded) {
      const name = isBlock(node) ? node.path.split(".").slice(-2).join(".") : node.name;
      elements.push({ data: { id, label: `${name}  ·  ${node.all.length}`, w: node.w, h: node.h, colour: "#fff", ...shares(node) }, position });
      return;
    }
    if (node.path) elements.push({ data: { id, label: isBlock(node) ? node.path : node.name, w: node.w, h: node.h, depth, colour: "#fff" }, position, classes: "frame" });
    for (const item of node.items) {
      if (!item.sites) { place(item, x + item.x, y + item.y, depth + 1); continue; }
      item.sites.forEach((site, i) => {
        const entry = DATA.sites[site];
        elements.push({ data: { id: "s:" + site, label: entry.op === "linear" ? entry.role : `${entry.role} ${entry.op}`, w: SITE.w, h: SITE.h, colour: DATA.colours[entry.format] },
          position: { x: x + item.x + i * (SITE.w + SITE.gap) + SITE.w / 2, y: y + item.y + SITE.h / 2 } });
      });
    }
  };
  place(root, 0, 0, 0);
  const seen = new Set(), backward = element("backward").checked;
  for (const [a, b] of DATA.edges) {
    const ahead = DATA.sites[a].role === "fprop" && DATA.sites[b].role === "fprop";
    if (!ahead && !(backward && DATA.sites[a].role !== "fprop")) continue;
    const source = holderOf(a), target = holderOf(b), key = source + ">" + target;
    if (source === target || seen.has(key)) continue;
    seen.add(key);
    elements.push({ data: { id: "e:" + key, source, target }, classes: ahead ? "" : "back" });
  }
  for (const one of elements) one.pannable = true; // dragging a box moves the view
  cy.batch(() => { cy.elements().remove(); cy.add(elements); });
  if (selected) cy.getElementById(selected).addClass("picked");
}

function pick(id) {
  cy.elements(".picked").removeClass("picked");
  selected = id;
  cy.getElementById(id).addClass("picked");
}

function showSite(site) { pick("s:" + site); show("product", sitePage(site)); }

function showModule(path) { pick("m:" + path); show("product", modulePage(index.get(path))); }

/* Open every module around a product, and bring it into view. */
function reveal(site) {
  let changed = false;
  for (let node = index.get(DATA.sites[site].module); node; node = node.parent) changed = folded.delete(node.path) || changed;
  if (changed) build();
  cy.animate({ center: { eles: cy.getElementById("s:" + site) }, zoom: Math.min(Math.max(cy.zoom(), .9), 1.3), duration: 0 });
  cy.center(cy.getElementById("s:" + site));
  showSite(site);
}

const pages = { product: () => modulePage(root), coverage: () => `<h2>coverage</h2>${pre(DATA.coverage)}`, cost: costPage, policy: () => `<h2>${escapeText(DATA.about.policy)}</h2><p class="muted">${escapeText(DATA.about.origin)}</p>${pre(DATA.policy)}` };
if (DATA.curves) pages.training = curvesPage;

function show(page, html) {
  element("panel").innerHTML = html === undefined ? pages[page]() : html;
  element("panel").scrollTop = 0;
  for (const button of element("tabs").children) button.classList.toggle("on", button.dataset.page === page);
}

for (const page of Object.keys(pages)) {
  const button = document.createElement("button");
  button.textContent = button.dataset.page = page;
  button.onclick = () => show(page);
  element("tabs").append(button);
}
element("panel").addEventListener("click", event => {
  const name = event.target.dataset && event.target.dataset.site;
  if (name !== undefined && numbers.has(name)) reveal(numbers.get(name));
});

/* Search: words in any order; Enter takes the first. */
function find(text) {
  const words = text.toLowerCase().split(/[\s:]+/).filter(Boolean);
  if (!words.length) return [];
  const found = [];
  for (let i = 0; i < DATA.sites.length && found.length < 30; i++) {
    const name = DATA.sites[i].name.toLowerCase() + " " + DATA.sites[i].format;
    if (words.every(word => name.includes(word))) found.push(i);
  }
  return found;
}
element("search").addEventListener("input", () => {
  const found = find(element("search").value);
  element("hits").hidden = !element("search").value;
  element("hits").innerHTML = found.length ? found.map((i, n) => `<div data-number="${i}"${n ? "" : ' class="first"'}>${escapeText(DATA.sites[i].name)}</div>`).join("") : "<div>nothing found</div>";
});
function take(site) { element("hits").hidden = true; reveal(site); }
element("hits").addEventListener("click", event => { if (event.target.dataset.number) take(+event.target.dataset.number); });
element("search").addEventListener("keydown", event => {
  const found = event.key === "Enter" ? find(element("search").value) : [];
  if (found.length) take(found[0]);
  if (event.key === "Escape") element("hits").hidden = true;
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement !== element("search")) { event.preventDefault(); element("search").focus(); }
});

function toggle(path) {
  const node = index.get(path);
  if (folded.has(path)) {
    folded.delete(path);
  } else if (!isLeaf(node)) {
    folded.add(path);
  } else return;
  build();
  cy.center(cy.getElementById("m:" + path));
}
cy.on("tap", "node", event => {
  const id = event.target.id();
  if (id.startsWith("s:")) showSite(+id.slice(2)); else showModule(id.slice(2));
});
cy.on("dbltap", "node", event => { if (event.target.id().startsWith("m:")) toggle(event.target.id().slice(2)); });
cy.on("tap", event => { if (event.target === cy) { pick(""); show("product"); } });

element("fold").onclick = () => { for (const node of index.values()) if (isBlock(node)) folded.add(node.path); build(); cy.fit(undefined, 30); };
element("unfold").onclick = () => { folded.clear(); build(); cy.fit(undefined, 30); };
element("fit").onclick = () => cy.fit(undefined, 30);
element("backward").onchange = build;

element("title").textContent = DATA.about.source;
element("facts").textContent = `policy ${DATA.about.policy}; ${percent(DATA.cost.quantized)} of product FLOPs quantized; double-click opens and folds`;
element("legend").innerHTML = Object.entries(DATA.colours).map(([name, colour]) => `<div><span style="background:${colour}"></span>${escapeText(name)}</div>`).join("");
build();
cy.fit(undefined, 30);
show("product");
performance.measure("ready", "start");
