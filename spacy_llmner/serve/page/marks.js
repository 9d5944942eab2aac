// Entities in an answer, as marks in its text.

import { describe } from "./tip.js";

/**
 * Show an answer's segments. Nodes of segments that have not changed stay, so that they keep the focus and
 * the selection.
 */
export function showSegments(element, segments, labels, isRedacted) {
  const keys = segments.map(({ text, entity }) =>
    JSON.stringify([text, entity, entity && labels.colorClass(entity.label)]),
  );
  const before = element.segmentKeys ?? [];
  let same = 0;
  while (same < keys.length && keys[same] === before[same]) same += 1;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(
    ...segments.slice(same).map(({ text, entity }) =>
      entity ? makeMark(text, entity, labels, isRedacted) : document.createTextNode(text),
    ),
  );
  element.segmentKeys = keys;
}

function makeMark(text, entity, labels, isRedacted) {
  const mark = document.createElement("mark");
  const isFinal = entity.status === "final";
  mark.className = `entity ${isFinal ? "final" : "provisional"} ${labels.colorClass(entity.label)}`;
  mark.append(text);
  mark.tabIndex = 0;
  describe(mark, `${entity.label}, ${scoreText(entity)}${isFinal ? "" : ", not final"}`);
  if (!isRedacted) {
    const tag = document.createElement("span");
    tag.className = "tag";
    tag.textContent = entity.label;
    tag.ariaHidden = "true"; // it is in the description
    mark.append(tag);
  }
  return mark;
}

export function scoreText({ score }) {
  return score === null ? "no score" : `score ${score.toFixed(2)}`;
}
