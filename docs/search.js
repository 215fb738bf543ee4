/* Searches SECTIONS: [page, anchor, title of the page, heading, prose, code]. Headings come first, then prose, then code. */
"use strict";

const input = document.querySelector(".search-form input");
const list = document.getElementById("search-results");
const state = document.getElementById("search-status");
const escaped = word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/* Words match at their beginnings, without an s at the end: "rewards" finds "reward". */
function patterns(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean).map(word => word.length > 3 ? word.replace(/s$/, "") : word);
  return words.map(word => new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(word)}[\\p{L}\\p{N}_]*`, "giu"));
}

function search(query) {
  const words = patterns(query);
  const count = text => words.map(word => (text.match(word) || []).length);
  const found = [];
  for (const [page, anchor, title, heading, prose, code] of words.length ? SECTIONS : []) {
    const fields = [heading, prose, code];
    const counts = fields.map(count);
    if (!words.every((_, i) => counts.some(field => field[i]))) continue;
    const sum = field => counts[field].reduce((a, b) => a + b);
    /* A section ranks by the least of the fields that it needs for all words. */
    const field = words.every((_, i) => counts[0][i]) ? 0 : words.every((_, i) => counts[0][i] || counts[1][i]) ? 1 : 2;
    found.push({page, anchor, title, heading, field, text: field == 2 ? code : prose, hits: sum(field)});
  }
  found.sort((a, b) => a.field - b.field || b.hits - a.hits);
  return {words, found};
}

/* Text with its words marked, as nodes: nothing of it is read as HTML. */
function marked(text, words) {
  const parts = text.split(new RegExp(`(${words.map(word => word.source).join("|")})`, "giu"));
  return parts.map((part, i) => {
    if (i % 2 == 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

function extract(text, words) {
  const first = Math.min(...words.map(word => text.search(word)).filter(at => at >= 0), text.length);
  const start = first < 80 || first == text.length ? 0 : text.indexOf(" ", first - 80) + 1;
  return (start ? "… " : "") + text.slice(start, start + 220) + (start + 220 < text.length ? " …" : "");
}

function show() {
  const {words, found} = search(input.value);
  state.textContent = words.length ? `${found.length || "No"} ${found.length == 1 ? "section" : "sections"}` : "";
  list.replaceChildren(...found.slice(0, 50).map(hit => {
    const item = document.createElement("li"), link = document.createElement("a");
    const text = document.createElement(hit.field == 2 ? "code" : "p");
    link.href = hit.page + (hit.anchor ? "#" + hit.anchor : "");
    link.append(...marked(hit.heading, words));
    text.append(...marked(extract(hit.text, words), words));
    item.append(link, hit.heading == hit.title ? "" : ` ${hit.title}`, text);
    item.dataset.kind = ["heading", "prose", "code"][hit.field];
    return item;
  }));
}

input.value = new URLSearchParams(location.search).get("q") || "";
input.addEventListener("input", show);
show();
