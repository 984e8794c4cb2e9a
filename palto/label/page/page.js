"use strict";
// One challenge after the other: ask for one, show it, send the answer.

const TEXTS = {
  en: {
    select: (name) => `Select all images with: ${name}`,
    name: "What does this image show?",
    tile: (place) => `Image ${place}`,
    send: "Send", none: "None of them", skip: "Skip",
    done: "Nothing is left to label. Thank you!",
    thanks: "Thank you.", again: "Please look more closely.",
    progress: (p) => `${p.sure} of ${p.images} images are sure`,
    help: "Keys: 1 to 9 choose (the number pad by its places), Enter sends, S skips.",
    statistics: "Statistics", failed: "The server does not answer. Try again.",
  },
  ru: {
    select: (name) => `Выберите все изображения, на которых: ${name}`,
    name: "Что на этом изображении?",
    tile: (place) => `Изображение ${place}`,
    send: "Отправить", none: "Таких нет", skip: "Пропустить",
    done: "Размечать больше нечего. Спасибо!",
    thanks: "Спасибо.", again: "Пожалуйста, посмотрите внимательнее.",
    progress: (p) => `Надёжно размечено: ${p.sure} из ${p.images}`,
    help: "Клавиши: 1–9 — выбрать (цифровой блок — по расположению), Enter — отправить, S — пропустить.",
    statistics: "Статистика", failed: "Сервер не отвечает. Попробуйте ещё раз.",
  },
};
const text = TEXTS[document.documentElement.lang] || TEXTS.en;
const NUMBER_PAD = [7, 8, 9, 4, 5, 6, 1, 2, 3];
const $ = (id) => document.getElementById(id);
let challenge = null;
let busy = false;

async function post(path, content) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  });
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error), { told: true });
  return value;
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  $("tiles").setAttribute("aria-busy", true);
  try {
    await work();
  } catch (error) {
    $("message").textContent = error.told ? error.message : text.failed;
    if (error.told) await next().catch(() => {});
  } finally {
    busy = false;
    $("tiles").setAttribute("aria-busy", false);
  }
}

async function next() {
  show(await post("api/challenge", {}));
}

function show(given) {
  challenge = given;
  showProgress(given.progress);
  const tiles = $("tiles"), classes = $("classes");
  tiles.replaceChildren();
  classes.replaceChildren();
  $("actions").hidden = given.done;
  if (given.done) {
    $("question").textContent = text.done;
    return;
  }
  const single = given.mode === "name";
  $("question").textContent = single ? text.name : text.select(given.asked);
  tiles.className = single ? "single" : "";
  classes.hidden = !single;
  $("send").hidden = single;
  given.images.forEach((image, k) => tiles.append(tile(image, k, single)));
  if (single) given.classes.forEach((name, k) => classes.append(choice(name, k)));
  showSend();
}

function tile(image, k, single) {
  const element = document.createElement(single ? "div" : "button");
  element.className = "tile";
  element.dataset.image = image;
  const picture = document.createElement("img");
  picture.src = `image/${image}`;
  picture.alt = single ? text.tile(1) : "";
  element.append(picture);
  if (!single) {
    element.type = "button";
    element.setAttribute("aria-pressed", "false");
    element.setAttribute("aria-label", text.tile(k + 1));
    const number = document.createElement("span");
    number.textContent = k + 1;
    number.ariaHidden = "true";
    element.append(number);
    element.addEventListener("click", () => toggle(k));
  }
  return element;
}

function choice(name, k) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = k < 9 ? `${k + 1}. ${name}` : name;
  button.addEventListener("click", () => send({ label: k }));
  return button;
}

function toggle(k) {
  const element = $("tiles").children[k];
  if (!element) return;
  element.setAttribute("aria-pressed", element.getAttribute("aria-pressed") !== "true");
  showSend();
}

function chosen() {
  return [...document.querySelectorAll('.tile[aria-pressed="true"]')].map((e) => +e.dataset.image);
}

function showSend() {
  $("send").textContent = chosen().length ? text.send : text.none;
}

function showProgress(progress) {
  $("bar").max = Math.max(progress.images, 1);
  $("bar").value = progress.sure;
  $("progress").textContent = text.progress(progress);
}

function send(answer) {
  return guarded(async () => {
    const { ticket, images } = challenge;
    const result = await post("api/answer", { ticket, images, ...answer });
    $("message").textContent = result.passed === false ? text.again : text.thanks;
    await next();
  });
}

function sendChosen() {
  return send({ chosen: chosen() });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !challenge || challenge.done) return;
  const pad = event.code.match(/^Numpad([1-9])$/), digit = event.key.match(/^[1-9]$/);
  const single = challenge.mode === "name";
  if (digit) {
    const k = pad && !single ? NUMBER_PAD.indexOf(+pad[1]) : +event.key - 1;
    if (!single) toggle(k);
    else if (k < challenge.classes.length) send({ label: k });
  } else if (event.key === "Enter" && !single && event.target.tagName !== "A"
             && event.target.id !== "skip") {
    if (!event.repeat) sendChosen();
  } else if (event.code === "KeyS" || (event.key === " " && event.target === document.body)) {
    guarded(next);
  } else {
    return;
  }
  event.preventDefault();
});

async function statistics() {
  const answer = await fetch("api/statistics");
  if (!answer.ok) return;
  $("statistics").hidden = false;
  $("statistics").querySelector("pre").textContent = JSON.stringify(await answer.json(), null, 1);
}

$("skip").textContent = text.skip;
$("help").textContent = text.help;
$("statistics").querySelector("summary").textContent = text.statistics;
$("statistics").addEventListener("toggle", statistics);
$("skip").addEventListener("click", () => guarded(next));
$("send").addEventListener("click", sendChosen);
guarded(next);
statistics();
