"use strict";
// The tree of modules, and where each box stands. A box is a module, folded or open, or a product.

const SITE = { w: 74, h: 30, gap: 8 }, FOLDED = { w: 176, h: 34 }, PAD = 14, HEAD = 22;

/* The tree of modules: each node has a path, parts by name, the products of its own, and all below. */
function makeTree(sites) {
  const root = { path: "", name: "", parts: new Map(), own: [], all: [], parent: null };
  const index = new Map([["", root]]);
  sites.forEach((site, number) => {
    let node = root;
    node.all.push(number);
    for (const part of site.module.split(".")) {
      let next = node.parts.get(part);
      if (!next) {
        const path = node.path ? node.path + "." + part : part;
        next = { path, name: part, parts: new Map(), own: [], all: [], parent: node };
        node.parts.set(part, next);
        index.set(path, next);
      }
      node = next;
      node.all.push(number);
    }
    node.own.push(number);
  });
  return { root, index };
}

/* Blocks of a stack: parts named by numbers. Folded at first, and what `fold` folds. */
function isBlock(node) { return /^\d+$/.test(node.name); }

function isLeaf(node) { return node.parts.size === 0; }

/* Place everything below `node`; return its size. Positions are relative to its corner. */
function measure(node, folded, flow) {
  node.folded = !!node.parent && folded.has(node.path);
  if (node.folded) { node.w = FOLDED.w; node.h = FOLDED.h; return node; }
  const items = [...node.parts.values()].map(part => measure(part, folded, flow));
  if (node.own.length) {
    const row = { sites: node.own, path: node.path + ":own", all: node.own };
    row.w = node.own.length * (SITE.w + SITE.gap) - SITE.gap;
    row.h = SITE.h;
    items.push(row);
  }
  items.sort((a, b) => a.all[0] - b.all[0]);
  node.items = items;
  const rows = rank(items, flow);
  const sizes = rows.map(row => ({
    w: row.reduce((sum, item) => sum + item.w + PAD, -PAD), h: Math.max(...row.map(item => item.h)),
  }));
  // A long chain is broken into columns, so that the whole is about as wide as high.
  const tall = sizes.reduce((sum, size) => sum + size.h + PAD, 0);
  const wide = Math.max(...sizes.map(size => size.w), 1);
  const columns = rows.length > 6 ? Math.max(1, Math.round(Math.sqrt(1.5 * tall / wide))) : 1;
  const limit = tall / columns;
  let x = PAD, y = HEAD + PAD, used = 0, column = wide, bottom = 0;
  rows.forEach((row, i) => {
    if (columns > 1 && used + sizes[i].h / 2 > limit) { x += column + 2.5 * PAD; y = HEAD + PAD; used = 0; }
    let left = x + (column - sizes[i].w) / 2;
    for (const item of row) { item.x = left; item.y = y + (sizes[i].h - item.h) / 2; left += item.w + PAD; }
    y += sizes[i].h + PAD;
    used += sizes[i].h + PAD;
    bottom = Math.max(bottom, y);
  });
  node.w = x + column + PAD;
  node.h = bottom;
  return node;
}

/* Rows of items, each below what it reads; of items in order, only earlier ones count as read. */
function rank(items, flow) {
  const owner = new Map();
  items.forEach((item, i) => item.all.forEach(site => owner.set(site, i)));
  const before = items.map(() => new Set());
  for (const [a, b] of flow) {
    const from = owner.get(a), to = owner.get(b);
    if (from !== undefined && to !== undefined && from < to) before[to].add(from);
  }
  const ranks = [];
  items.forEach((_, i) => { ranks[i] = Math.max(-1, ...[...before[i]].map(j => ranks[j])) + 1; });
  const rows = [];
  items.forEach((item, i) => { (rows[ranks[i]] ||= []).push(item); });
  return rows.filter(Boolean);
}
