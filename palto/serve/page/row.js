"use strict";

// A field for each column of the table that the run has learned from.

const mean = new Intl.NumberFormat(language, { maximumSignificantDigits: 4, useGrouping: false });
const hasComma = mean.format(0.5).includes(",");

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
    // Not of type number: a browser may drop a comma that it does not expect, so 1,5 would be 15.
    Object.assign(input, { inputMode: "decimal", placeholder: mean.format(column.mean) });
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
    model.columns.forEach(({ name, categories }, place) => {
      const { value } = find(`column-${place}`);
      row[name] = (categories || !hasComma ? value : value.replace(",", ".")) || null;
    });
    ask(JSON.stringify(row), "application/json");
  });
}

build();
