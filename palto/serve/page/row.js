"use strict";

// A field for each column of the table that the run has learned from.

function field(column, place) {
  const label = made("label", column.name);
  const id = label.htmlFor = `column-${place}`;
  let input;
  if (column.categories) {
    input = document.createElement("select");
    input.append(new Option(find("row").dataset.unknown, ""));
    column.categories.forEach((text) => input.append(new Option(text, text)));
  } else {
    input = document.createElement("input");
    Object.assign(input, { type: "number", step: "any", inputMode: "decimal" });
    input.placeholder = Number(column.mean.toPrecision(4));
  }
  Object.assign(input, { id, autocomplete: "off" });
  return [label, input];
}

async function build() {
  const model = await fetched("model");
  if (model.error) return show(model);
  find("columns").replaceChildren(...model.columns.flatMap(field));
  find("row").addEventListener("submit", (event) => {
    event.preventDefault();
    const row = {};
    model.columns.forEach(({ name }, place) => {
      row[name] = find(`column-${place}`).value || null;
    });
    ask(JSON.stringify(row), "application/json");
  });
}

build();
