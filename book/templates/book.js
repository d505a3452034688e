// What every page of the book does: the theme, boxes that scroll, folds, the picker of two stages.
"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  return root.dataset.theme || (dark.matches ? "dark" : "light");
}

function nameButton() {
  themeButton.textContent = theme() === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `${themeButton.textContent} theme`);
}

// The system's choice is not remembered, so that the page goes on following it.
function switchTheme() {
  const wanted = theme() === "dark" ? "light" : "dark";
  root.dataset.theme = wanted === (dark.matches ? "dark" : "light") ? "" : wanted;
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {} // no storage: the choice lasts as long as the page
  nameButton();
}

// A box can be scrolled with the keyboard only if it can be reached with it.
function reachScrollers() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches("pre") ? "Code" : box.matches(".equation") ? "Equation" : "Table");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  }
}

function compare(event) {
  event.preventDefault();
  const [before, after] = ["before", "after"].map((name) => event.target.elements[name].value);
  location.href = `${event.target.dataset.folder}${before}-to-${after}.html`;
}

// One stage has no difference to itself: the other select takes what this one had.
function keepTwo(form) {
  const selects = [...form.querySelectorAll("select")];
  const had = selects.map((select) => select.value);
  selects.forEach((select, side) => {
    select.addEventListener("change", () => {
      if (select.value === selects[1 - side].value) selects[1 - side].value = had[side];
      selects.forEach((each, i) => { had[i] = each.value; });
    });
  });
}

function unfold() {
  const folds = [...document.querySelectorAll("details.fold")];
  const open = folds.some((fold) => !fold.open);
  for (const fold of folds) fold.open = open;
}

function nameUnfold() {
  const folded = document.querySelector("details.fold:not([open])");
  unfoldButton.textContent = folded ? "Unfold all" : "Fold the unchanged";
}

const themeButton = document.getElementById("theme");
themeButton.hidden = false;
themeButton.addEventListener("click", switchTheme);
dark.addEventListener("change", nameButton);
nameButton();

const unfoldButton = document.getElementById("unfold");
if (unfoldButton && document.querySelector("details.fold")) {
  unfoldButton.hidden = false;
  unfoldButton.addEventListener("click", unfold);
  document.addEventListener("toggle", nameUnfold, true);
}

for (const form of document.querySelectorAll("form.picker")) {
  form.hidden = false;
  form.addEventListener("submit", compare);
  keepTwo(form);
}

const contents = document.querySelector(".toc details");
const roomy = matchMedia("(min-width: 1280px)");
function unfoldContents() {
  if (contents) contents.open = roomy.matches;
}
roomy.addEventListener("change", unfoldContents);
unfoldContents();

addEventListener("resize", reachScrollers);
document.addEventListener("toggle", reachScrollers, true);
reachScrollers();
