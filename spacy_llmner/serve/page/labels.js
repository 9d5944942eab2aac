// The labels: which are shown or found, and the colour of each.

const N_COLORS = 10;
const chips = document.querySelector("#chips");
const form = document.querySelector("#add-label");
const input = document.querySelector("#new-label");

export class Labels extends EventTarget {
  #isChosen = new Map();
  #colors = new Map();
  /** Whether the pipeline finds labels in words, so that any can be chosen. */
  inWords = false;

  /** Start with what the server says. */
  load({ labels, any_labels: inWords }) {
    this.#isChosen.clear();
    chips.replaceChildren();
    this.inWords = inWords;
    form.hidden = !inWords;
    labels.forEach((label) => this.add(label));
  }

  /** Add a label, unless it is there. */
  add(label) {
    if (this.#isChosen.has(label)) return;
    this.#isChosen.set(label, true);
    chips.append(this.#makeChip(label));
    this.#changed();
  }

  isShown(label) {
    return this.#isChosen.get(label) ?? true;
  }

  get chosen() {
    return [...this.#isChosen.keys()].filter((label) => this.isShown(label));
  }

  colorClass(label) {
    if (!this.#colors.has(label)) this.#colors.set(label, this.#colors.size % N_COLORS);
    return `color-${this.#colors.get(label)}`;
  }

  #makeChip(label) {
    const chip = document.createElement("span");
    chip.className = `chip ${this.colorClass(label)}`;
    const choice = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      this.#isChosen.set(label, box.checked);
      this.#changed();
    });
    choice.append(box, label);
    chip.append(choice);
    if (this.inWords) chip.append(this.#makeRemover(label, chip));
    return chip;
  }

  #makeRemover(label, chip) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "×";
    button.ariaLabel = `Remove ${label}`;
    button.addEventListener("click", () => {
      this.#isChosen.delete(label);
      chip.remove();
      input.focus();
      this.#changed();
    });
    return button;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const labels = new Labels();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  input.value
    .split(",")
    .map((label) => label.trim())
    .filter(Boolean)
    .forEach((label) => labels.add(label));
  input.value = "";
});
