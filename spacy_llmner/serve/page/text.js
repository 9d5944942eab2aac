// Entities of a text that is pasted.

import { requestJson } from "./api.js";
import { labels } from "./labels.js";
import { announce, hideError, showError } from "./messages.js";
import { showSpans } from "./spans.js";

const form = document.querySelector("#text-form");
const source = document.querySelector("#source");
const button = document.querySelector("#find");
const errorBox = document.querySelector("#text-error");
const result = document.querySelector("#result");
const json = document.querySelector("#json");
const copyButton = document.querySelector("#copy");

/** The text and what was found in it. */
let found = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!button.disabled && source.value.trim()) find(source.value);
});
source.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
copyButton.addEventListener("click", copy);
labels.addEventListener("change", () => found && show());

async function find(text) {
  hideError(errorBox);
  if (labels.inWords && !labels.chosen.length) {
    showError(errorBox, "Choose at least one label.");
    return;
  }
  const body = { texts: [text], spans: true, ...(labels.inWords ? { labels: labels.chosen } : {}) };
  button.disabled = true;
  announce("Finding entities.");
  try {
    const { results } = await requestJson("ner", body);
    found = { text, ...results[0] };
    show();
    announce(document.querySelector("#summary").textContent);
  } catch (error) {
    found = null;
    result.hidden = true;
    showError(errorBox, error.message);
  }
  button.disabled = false;
}

function show() {
  // A component can have labels that the server doesn't list.
  if (!labels.inWords) everything(found).forEach(({ label }) => labels.add(label));
  const isShown = ({ label }) => labels.isShown(label);
  const shown = {
    text: found.text,
    entities: found.entities.filter(isShown),
    spans: found.spans.filter(isShown),
  };
  const all = everything(shown);
  const n = all.length;
  document.querySelector("#summary").textContent =
    n === 0 ? "No entities found" : n === 1 ? "1 entity found" : `${n} entities found`;
  showSpans(document.querySelector("#marked"), shown.text, all, labels);
  showTable(all);
  json.textContent = JSON.stringify(shown, null, 2);
  copyButton.textContent = "Copy";
  result.hidden = false;
}

/** All entities and other spans, each once, in text order, longer ones first. */
function everything({ entities, spans }) {
  const byKey = new Map(
    [...spans, ...entities].map((span) => [JSON.stringify([span.start, span.end, span.label]), span]),
  );
  return [...byKey.values()].sort((a, b) => a.start - b.start || b.end - a.end);
}

function showTable(spans) {
  const table = document.querySelector("#found");
  table.hidden = !spans.length;
  table.tBodies[0].replaceChildren(
    ...spans.map(({ text, label, score, start, end }) => {
      const row = document.createElement("tr");
      for (const value of [text, label, score === null ? "" : score.toFixed(2), `${start}–${end}`]) {
        row.insertCell().textContent = value;
      }
      return row;
    }),
  );
}

async function copy() {
  try {
    await navigator.clipboard.writeText(json.textContent);
    copyButton.textContent = "Copied";
    announce("Copied.");
  } catch {
    // Browsers allow it only for https and localhost.
    getSelection().selectAllChildren(json);
    json.focus();
    announce("Selected. Press Ctrl+C to copy.");
    copyButton.textContent = "Press Ctrl+C";
  }
}
