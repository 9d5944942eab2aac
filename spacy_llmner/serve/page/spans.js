// A text with spans, each a bar under its words. Bars of spans that overlap are under each other.

import { scoreText } from "./marks.js";

// Longer spans than this are broken between their words at the end of a line.
const MOST_TOGETHER = 40;

export function showSpans(element, text, spans, labels) {
  const points = [...text];
  const levels = findLevels(spans);
  element.replaceChildren();
  let word = null;
  for (const [start, end] of pieces(points, spans)) {
    const piece = points.slice(start, end).join("");
    const isSpace = /^\s/u.test(piece);
    const inside = spans.filter((span) => span.start <= start && end <= span.end);
    if (isSpace && !inside.length) {
      element.append(piece);
      word = null;
      continue;
    }
    // Lines are not broken in a short span, above a label, or between a name and the comma after it.
    if (!word) {
      word = document.createElement("span");
      word.className = "word";
      element.append(word);
    }
    word.append(inside.length ? makePiece(piece, start, inside, levels, labels) : piece);
    const isTogether = (span) => isShort(span) || end - span.start < span.label.length;
    if (isSpace && !inside.some(isTogether)) word = null;
  }
}

function isShort({ start, end }) {
  return end - start <= MOST_TOGETHER;
}

/** The lowest free level of each span; 0 is next to the text. Spans are in text order, longer ones first. */
function findLevels(spans) {
  const reached = [];
  return new Map(
    spans.map((span) => {
      let level = 0;
      while (reached[level] > span.start) level += 1;
      reached[level] = span.end;
      return [span, level];
    }),
  );
}

/** Start and end of the parts of a text that are in the same spans, and are all space or none. */
function pieces(points, spans) {
  const cuts = new Set([0, points.length, ...spans.flatMap(({ start, end }) => [start, end])]);
  const isSpace = points.map((point) => /\s/u.test(point));
  for (let i = 1; i < points.length; i += 1) if (isSpace[i] !== isSpace[i - 1]) cuts.add(i);
  const sorted = [...cuts].sort((a, b) => a - b);
  return sorted.slice(1).map((end, i) => [sorted[i], end]);
}

function makePiece(text, start, spans, levels, labels) {
  const piece = document.createElement("span");
  piece.className = "piece";
  const words = document.createElement("span");
  words.textContent = text;
  piece.append(words);
  const n = Math.max(...spans.map((span) => levels.get(span))) + 1;
  const bars = Array.from({ length: n }, () => document.createElement("span"));
  piece.append(...bars);
  for (const span of spans) {
    const bar = bars[levels.get(span)];
    bar.className = `bar ${labels.colorClass(span.label)}`;
    bar.dataset.tip = `${span.text}: ${span.label}, ${scoreText(span)}`;
    if (span.start !== start) continue;
    bar.textContent = span.label;
    // The label of several words can be as wide as all of them, so that there is no gap after the first.
    if (span.label.length <= span.end - span.start) bar.classList.add("wide");
  }
  return piece;
}
