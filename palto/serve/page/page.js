"use strict";

const find = (id) => document.getElementById(id);
const texts = document.body.dataset;
let newest = 0; // an answer to an earlier picture is not shown

async function ask(file) {
  const turn = ++newest;
  const picture = find("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.hidden = false;
  find("classes").replaceChildren();
  find("status").textContent = texts.waiting;
  let answer;
  try {
    const headers = { "content-type": file.type || "application/octet-stream" };
    const response = await fetch("predict", { method: "POST", body: file, headers });
    answer = await response.json();
  } catch {
    answer = { error: texts.lost };
  }
  if (turn === newest) show(answer);
}

function show(answer) {
  if (answer.error) {
    find("status").textContent = answer.error;
    return;
  }
  const percent = new Intl.NumberFormat(document.documentElement.lang, {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  const pairs = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const best = pairs[0];
  find("status").textContent = `${best[0]}: ${percent.format(best[1])}`;
  find("classes").replaceChildren(...pairs.map(([name, p]) => {
    const row = document.createElement("li");
    const [label, number] = [document.createElement("span"), document.createElement("span")];
    const bar = document.createElement("progress");
    label.textContent = name;
    number.textContent = percent.format(p);
    bar.value = p;
    bar.setAttribute("aria-label", name);
    row.append(label, bar, number);
    return row;
  }));
}

const first = (files) => { if (files.length) ask(files[0]); };
find("file").addEventListener("change", (event) => first(event.target.files));
document.addEventListener("paste", (event) => first(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  first(event.dataTransfer.files);
});
