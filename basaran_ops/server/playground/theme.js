// Runs before the page is painted, so that a dark page is never white first: a classic script for that reason.
// The choice is "auto" (the system's), "light" or "dark".
"use strict";
{
  const choices = ["auto", "light", "dark"];
  const root = document.documentElement;

  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be forbidden
    }
  };

  const show = (choice) => {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
  };

  let choice = choices.includes(stored()) ? stored() : "auto";
  show(choice);

  document.addEventListener("DOMContentLoaded", () => {
    show(choice);
    document.getElementById("theme").addEventListener("click", () => {
      choice = choices[(choices.indexOf(choice) + 1) % choices.length];
      show(choice);
      try {
        localStorage.setItem("theme", choice);
      } catch {
        // It holds until the page is left.
      }
    });
  });
}
