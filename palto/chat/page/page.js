"use strict";

// The conversation lives here and goes whole to the server with every message. What people and the
// model say is only ever set as text.

const find = (id) => document.getElementById(id);
const texts = document.body.dataset;
let turns = []; // what has been said: {role, content}
let running = null; // what stops the answer that is coming

function say(text) {
  find("status").textContent = text;
}

function shown(role, content) {
  const item = document.createElement("li");
  const who = document.createElement("strong");
  const body = document.createElement("span");
  item.className = role;
  who.textContent = role === "user" ? texts.you : texts.it;
  body.textContent = content;
  item.append(who, body);
  find("conversation").append(item);
  return body;
}

function buttons() {
  find("send").hidden = Boolean(running);
  find("stop").hidden = !running;
  find("again").hidden = Boolean(running) || !turns.length;
  find("new").hidden = !turns.length;
}

function request() {
  const system = find("system").value.trim();
  const number = (id) => (find(id).value === "" ? undefined : Number(find(id).value));
  return JSON.stringify({
    messages: system ? [{ role: "system", content: system }, ...turns] : turns,
    stream: true,
    temperature: number("temperature"),
    max_tokens: number("longest"),
    seed: number("seed"),
  });
}

// Server-sent events: blocks of lines with an empty line between. A comment says how far it is.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    yield* blocks;
  }
}

async function answer() {
  const stopper = new AbortController();
  running = stopper;
  buttons();
  say(texts.reading);
  const body = shown("assistant", "");
  let content = "";
  let end = "";
  let failed = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", body: request(), signal: stopper.signal,
      headers: { "content-type": "application/json" },
    });
    if (!response.ok) throw (await response.json()).error;
    for await (const block of events(response)) {
      if (block.startsWith(":")) {
        if (/\d/.test(block) && !content) say(`${texts.reading} ${block.slice(2)}`);
        continue;
      }
      if (block === "data: [DONE]") break;
      const event = JSON.parse(block.slice("data: ".length));
      if (event.error) throw event.error;
      const { delta, finish_reason: reason } = event.choices[0];
      if (delta.content) {
        const low = innerHeight + scrollY >= document.body.scrollHeight - 80;
        content += delta.content;
        body.textContent = content;
        if (low) scrollTo(0, document.body.scrollHeight);
        if (find("status").textContent) say("");
      }
      if (reason) {
        const notes = [reason === "length" ? texts.cut : texts.done];
        if (event.palto.dropped_turns) notes.push(texts.dropped);
        notes.push(`${Math.round(event.palto.tokens_a_second)} ${texts.rate}`);
        end = notes.join(" ");
      }
    }
    if (!end) failed = texts.lost;
  } catch (error) {
    if (stopper.signal.aborted) end = texts.stopped;
    else failed = typeof error === "string" ? error : texts.lost;
  }
  if (running !== stopper) return; // a new conversation has begun
  running = null;
  if (content) {
    turns.push({ role: "assistant", content });
  } else if (failed || end === texts.stopped) {
    body.parentElement.remove();
    const asked = turns.pop(); // so that it can be sent again, changed
    find("conversation").lastElementChild?.remove();
    if (!find("message").value) find("message").value = asked.content;
  } else {
    turns.push({ role: "assistant", content: "" });
  }
  say(failed ?? end);
  buttons();
}

function send() {
  const content = find("message").value.trim();
  if (!content || running) return;
  find("message").value = "";
  turns.push({ role: "user", content });
  shown("user", content);
  find("message").focus();
  answer();
}

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
find("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("stop").addEventListener("click", () => {
  running?.abort();
  find("message").focus();
});
find("again").addEventListener("click", () => {
  if (turns.at(-1)?.role === "assistant") {
    turns.pop();
    find("conversation").lastElementChild.remove();
  }
  find("message").focus();
  answer();
});
find("new").addEventListener("click", () => {
  running?.abort();
  running = null;
  turns = [];
  find("conversation").replaceChildren();
  say("");
  buttons();
  find("message").focus();
});
find("message").focus();
