"use strict";

// What both pages do: ask the server, and show its answer. `ask` is given the body of a request.

const find = (id) => document.getElementById(id);
const texts = document.body.dataset;
const language = document.documentElement.lang;
let newest = 0; // an answer to an earlier question is not shown

async function fetched(path, options) {
  try {
    const response = await fetch(path, options);
    return await response.json();
  } catch {
    return { error: texts.lost };
  }
}

async function ask(body, type) {
  const turn = ++newest;
  show({ error: texts.waiting });
  const headers = { "content-type": type };
  const answer = await fetched("predict", { method: "POST", body, headers });
  if (turn === newest) show(answer);
}

function show(answer) {
  const percent = new Intl.NumberFormat(language, {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  const number = new Intl.NumberFormat(language, { maximumSignificantDigits: 7 });
  const pairs = Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  let said = answer.error;
  if (pairs.length) said = `${pairs[0][0]}: ${percent.format(pairs[0][1])}`;
  else if (answer.value !== undefined) said = number.format(answer.value);
  find("status").textContent = said; // a screen reader says it
  fill("classes", pairs.map(([name, p]) => bar(name, p, percent.format(p))));
  fill("notes", (answer.notes ?? []).map((note) => made("span", note)));
}

function fill(list, items) {
  find(list).hidden = !items.length;
  find(list).replaceChildren(...items.map((item) => {
    const row = document.createElement("li");
    row.append(...[item].flat());
    return row;
  }));
}

function bar(name, share, text) {
  const progress = document.createElement("progress");
  progress.value = share;
  progress.setAttribute("aria-hidden", "true"); // the number says the same
  return [made("span", name), progress, made("span", text)];
}

function made(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
