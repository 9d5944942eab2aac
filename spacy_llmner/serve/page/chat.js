// The chat.

import { Answer } from "./answer.js";
import { readEvents, request } from "./api.js";
import { labels } from "./labels.js";
import { showSegments } from "./marks.js";
import { announce, hideError, showError } from "./messages.js";

const log = document.querySelector("#log");
const hello = document.querySelector("#hello");
const composer = document.querySelector("#composer");
const question = document.querySelector("#question");
const errorBox = document.querySelector("#chat-error");
const sendButton = document.querySelector("#send");
const stopButton = document.querySelector("#stop");

/** What the server gets: turns with a role and a content. */
let history = [];
/** The answers that are shown, as functions that show them again. */
let repaints = [];
/** Ends the running answer. */
let running = null;

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && question.value.trim()) ask(question.value);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});
stopButton.addEventListener("click", () => running?.abort());
document.querySelector("#clear").addEventListener("click", clear);
labels.addEventListener("change", () => repaints.forEach((paint) => paint()));

function clear() {
  running?.abort();
  end();
  history = [];
  repaints = [];
  log.replaceChildren(hello);
  hideError(errorBox);
  announce("The conversation is empty.");
  question.focus();
}

async function ask(content) {
  const mode = document.querySelector("[name=mode]:checked").value;
  const isRedacted = mode === "redact";
  hideError(errorBox);
  if (!labels.chosen.length) {
    showError(errorBox, "Choose at least one label.");
    return;
  }
  // Labels that are only hidden can be shown again. Redacted ones are gone.
  const isLimited = isRedacted || labels.inWords;
  const turns = [...history, { role: "user", content }];
  const body = {
    model: document.querySelector("#models").value,
    messages: turns,
    stream: true,
    entities: { mode, ...(isLimited ? { labels: labels.chosen } : {}) },
  };

  hello.remove();
  const asked = addTurn("You", "user");
  asked.textContent = content;
  const shown = addTurn("Answer", isRedacted ? "assistant redacted" : "assistant");
  const turn = shown.parentElement;
  const answer = new Answer();
  const isShown = ({ label }) => isRedacted || labels.isShown(label);
  const paint = () => keepAtEnd(() => showSegments(shown, answer.segments(isShown), labels, isRedacted));
  question.value = "";
  scrollToEnd();

  const controller = new AbortController();
  begin(controller, turn);
  let note = "";
  try {
    const response = await request("v1/chat/completions", body, controller.signal);
    repaints.push(paint);
    let isPlanned = false;
    for await (const chunk of readEvents(response)) {
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      answer.read(choice);
      if (choice.finish_reason === "length") note = "Cut off: the maximum length is reached.";
      if (isPlanned) continue;
      isPlanned = true;
      // At most once per frame.
      requestAnimationFrame(() => {
        isPlanned = false;
        paint();
      });
    }
  } catch (error) {
    if (running !== controller) return; // the conversation was cleared
    note = error.name === "AbortError" ? "Stopped." : "Not complete.";
    if (error.name !== "AbortError") showError(errorBox, error.message);
  }
  paint();
  end();
  turn.ariaBusy = "false";
  if (note) addNote(turn, note);
  announce(`Answer: ${answer.text} ${note} ${summary(answer.entities.filter(isShown))}`);
  if (answer.text) {
    history = [...turns, { role: "assistant", content: answer.text }];
  } else {
    giveBack(content, asked.parentElement, turn);
  }
}

/** There is no answer: the question can be sent again. */
function giveBack(content, ...turns) {
  turns.forEach((turn) => turn.remove());
  if (!question.value) question.value = content;
  if (!history.length) log.replaceChildren(hello);
}

function begin(controller, turn) {
  running = controller;
  turn.ariaBusy = "true";
  sendButton.hidden = true;
  stopButton.hidden = false;
  announce("The answer is being written.");
}

function end() {
  running = null;
  const hadFocus = document.activeElement === stopButton;
  stopButton.hidden = true;
  sendButton.hidden = false;
  if (hadFocus) question.focus();
}

function addNote(turn, text) {
  const note = document.createElement("p");
  note.className = "hint";
  note.textContent = text;
  keepAtEnd(() => turn.append(note));
}

function addTurn(name, kinds) {
  const turn = document.createElement("article");
  turn.className = `turn ${kinds}`;
  const heading = document.createElement("h2");
  heading.className = "visually-hidden";
  heading.textContent = name;
  const text = document.createElement("div");
  text.className = "turn-text";
  turn.append(heading, text);
  log.append(turn);
  return text;
}

function summary(entities) {
  if (!entities.length) return "No entities.";
  return `Entities: ${entities.map(({ text, label }) => `${text}, ${label}`).join("; ")}.`;
}

/** Change the conversation; if its end is in view, it stays so. */
function keepAtEnd(change) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (isAtEnd) scrollToEnd();
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
}
