"use strict";
(() => {
  const given = document.getElementById("given");
  if (!given) return;
  const cards = [...document.querySelectorAll(".card[data-given]")];
  const shown = document.getElementById("shown");
  const show = () => {
    for (const card of cards) card.hidden = given.value !== "" && card.dataset.given !== given.value;
    shown.textContent = `${cards.filter((card) => !card.hidden).length} shown`;
  };
  given.addEventListener("change", show);
  show();
})();
