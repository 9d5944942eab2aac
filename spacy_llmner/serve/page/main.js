// Starts the page: what the server can do, the tabs, and the API key.

import { requestJson, setKey } from "./api.js";
import "./chat.js";
import { labels } from "./labels.js";
import { hideError, showError } from "./messages.js";
import "./text.js";

const notice = document.querySelector("#notice");
const keyForm = document.querySelector("#key-form");
const keyInput = document.querySelector("#key");
const models = document.querySelector("#models");
const tabs = [...document.querySelectorAll("[role=tab]")];

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(keyInput.value);
  keyInput.value = "";
  start(true);
});
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const other = tabs[1 - tabs.indexOf(tab)];
    choose(other);
    other.focus();
  });
}
start(false);

async function start(hasKey) {
  hideError(notice);
  let answer;
  try {
    answer = await requestJson("v1/models");
  } catch (error) {
    keyForm.hidden = error.status !== 401;
    if (error.status !== 401 || hasKey) showError(notice, error.message);
    if (error.status === 401) keyInput.focus();
    return;
  }
  keyForm.hidden = true;
  showModels(answer.data.map(({ id }) => id));
  labels.load(answer.entities);
  document.querySelector("#settings").hidden = false;
  const { refusal } = answer.entities;
  if (refusal === null) {
    document.querySelector("#tabs").hidden = false;
    choose(tabs[0]);
  } else {
    document.querySelector("#modes").hidden = true;
    const reason = document.querySelector("#refusal");
    reason.textContent = `This pipeline offers no chat. ${refusal}`;
    reason.hidden = false;
    const text = document.querySelector("#text");
    text.removeAttribute("role"); // there are no tabs
    text.hidden = false;
  }
}

function showModels(names) {
  models.replaceChildren(...names.map((name) => new Option(name, name)));
  document.querySelector("#model").textContent = names.length === 1 ? names[0] : "";
  document.querySelector("#model-choice").hidden = names.length < 2;
}

function choose(chosen) {
  for (const tab of tabs) {
    const isChosen = tab === chosen;
    tab.ariaSelected = String(isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    document.querySelector(`#${tab.getAttribute("aria-controls")}`).hidden = !isChosen;
  }
  // How entities are treated in an answer.
  document.querySelector("#modes").hidden = chosen !== tabs[0];
}
