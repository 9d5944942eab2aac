// An answer while it is written: its text, and what is known of its entities.

export class Answer {
  // The server counts Unicode characters (code points), JavaScript's strings count UTF-16 units. So the text
  // is kept as an array with one element per code point.
  #points = [];
  #entities = new Map();

  /** Read the choice of a chunk. */
  read(choice) {
    for (const point of choice.delta?.content ?? "") this.#points.push(point);
    for (const event of choice.entities ?? []) {
      if (event.replaces) this.#entities.delete(keyOf(...event.replaces));
      const key = keyOf(event.start, event.end, event.label);
      if (event.status === "dropped") this.#entities.delete(key);
      else this.#entities.set(key, event);
    }
  }

  get text() {
    return this.#points.join("");
  }

  /** The entities, in text order. */
  get entities() {
    return [...this.#entities.values()].sort((a, b) => a.start - b.start || b.end - a.end);
  }

  /** The text in segments, each with its entity or null. isShown says which entities count. */
  segments(isShown) {
    const segments = [];
    let reached = 0;
    const add = (start, end, entity) => {
      if (start < end) segments.push({ text: this.#points.slice(start, end).join(""), entity });
    };
    for (const entity of this.entities.filter(isShown)) {
      if (entity.start < reached) continue; // until the server has dropped one of the two
      add(reached, entity.start, null);
      add(entity.start, entity.end, entity);
      reached = entity.end;
    }
    add(reached, this.#points.length, null);
    return segments;
  }
}

function keyOf(start, end, label) {
  return JSON.stringify([start, end, label]);
}
