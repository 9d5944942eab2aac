// Messages to the user.

const announcement = document.querySelector("#announcement");

/** Tell screen readers something, when they have time. */
export function announce(text) {
  announcement.textContent = text;
}

export function showError(element, text) {
  element.textContent = text;
  element.hidden = false;
}

export function hideError(element) {
  element.hidden = true;
  element.textContent = "";
}
