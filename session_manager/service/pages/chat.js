// The page /chat: sends a message, shows its reply while it is made, and the session once the reply is complete.
"use strict";

const element = (id) => document.getElementById(id);
const log = element("log");
const message = element("message");

let session = null;
let reply = null; // An AbortController while a reply is being written.
let unsent = null; // The last message that was not answered, with its key: sent again it is stored once.

function say(role, text) {
  const item = document.createElement("article");
  item.className = `said ${role}`;
  const who = document.createElement("h2");
  who.textContent = { user: "You", assistant: "Assistant" }[role] ?? role;
  const words = document.createElement("p");
  words.textContent = text;
  item.append(who, words);
  log.append(item);
  log.scrollTop = log.scrollHeight;
  return item;
}

function isBusy(busy) {
  element("send").disabled = busy;
  element("stop").disabled = !busy;
  element("new").disabled = busy;
  element("status").textContent = busy ? "The assistant is writing…" : "";
}

function show(found) {
  session = found.session_id;
  element("title").textContent = found.title || "Conversation";
  element("session").textContent = `Session ${session}, ${found.message_count} messages`;
  document.title = `${found.title || "Conversation"} · aria-api`;
  history.replaceState(null, "", `/chat?session=${session}`);
}

function newKey() {
  // Not randomUUID, which only pages behind https or on this machine have.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// Yields {event, data} for each server-sent event of a response.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("event")) yield { event: field("event"), data: JSON.parse(field("data")) };
    }
  }
}

async function answered(response) {
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.error || `the service answers ${response.status}`);
}

// Returns the data of `done`; throws when there is none.
async function talk(body, words, signal) {
  const headers = { "Content-Type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await answered(await fetch("/api/engine/chat/stream", request));
  for await (const { event, data } of events(response)) {
    if (event === "delta") {
      words.textContent += data.content;
      log.scrollTop = log.scrollHeight;
    } else if (event === "error") {
      throw new Error(data.error);
    } else if (event === "done") {
      words.textContent = data.content;
      return data;
    }
  }
  throw new Error("the connection was lost; send the message again");
}

async function send() {
  const text = message.value;
  if (reply || !text.trim()) return;
  if (unsent?.text !== text || unsent.session !== session) unsent = { text, session, key: newKey() };
  const body = { message: text, idempotency_key: unsent.key };
  if (session) body.session_id = session;
  const asked = say("user", text);
  const answer = say("assistant", "");
  answer.setAttribute("aria-busy", "true");
  message.value = "";
  element("problem").textContent = "";
  reply = new AbortController();
  isBusy(true);
  try {
    show(await talk(body, answer.querySelector("p"), reply.signal));
    unsent = null;
  } catch (error) {
    asked.remove();
    answer.remove();
    if (!message.value) message.value = text;
    const stopped = error.name === "AbortError";
    element("problem").textContent = stopped ? "" : `Not answered: ${error.message}`;
    element("status").textContent = "";
  } finally {
    answer.removeAttribute("aria-busy");
    reply = null;
    isBusy(false);
    message.focus();
  }
}

async function open(id) {
  const found = await (await answered(await fetch(`/api/engine/sessions/${encodeURIComponent(id)}`))).json();
  for (const each of found.recent_messages) say(each.role, each.content ?? "(encrypted)");
  show(found);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") reply?.abort();
});
element("stop").addEventListener("click", () => reply?.abort());
element("new").addEventListener("click", () => location.assign("/chat"));

const wanted = new URLSearchParams(location.search).get("session");
if (wanted) {
  open(wanted).catch((error) => {
    element("problem").textContent = `This conversation cannot be shown: ${error.message}`;
  });
}
