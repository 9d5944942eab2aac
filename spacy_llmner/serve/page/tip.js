// Descriptions of elements, shown next to them on hover, focus or touch.

const tip = document.querySelector("#tip");

/** Give an element a description, which screen readers read, too. */
export function describe(element, text) {
  element.dataset.tip = text;
  element.setAttribute("aria-description", text);
}

function show(element) {
  tip.textContent = element.dataset.tip;
  tip.hidden = false;
  const { left, bottom, top } = element.getClientRects()[0];
  const { width, height } = tip.getBoundingClientRect();
  const isLow = bottom + height > innerHeight;
  tip.style.left = `${Math.max(0, Math.min(left, document.documentElement.clientWidth - width))}px`;
  tip.style.top = `${isLow ? top - height : bottom}px`;
}

function hide() {
  tip.hidden = true;
}

const described = (target) => target.closest?.("[data-tip]");

document.addEventListener("pointerover", ({ target }) => {
  const element = described(target) ?? described(document.activeElement);
  // The pointer can move onto the description.
  if (element) show(element);
  else if (target !== tip) hide();
});
document.addEventListener("focusin", ({ target }) => (described(target) ? show(target) : hide()));
document.addEventListener("focusout", hide);
document.addEventListener("scroll", hide, true);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") hide();
});
