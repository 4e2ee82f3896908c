"use strict";
(() => {
  const filters = document.getElementById("filters");
  const cards = [...document.querySelectorAll(".card")];
  const texts = cards.map((card) =>
    [...card.querySelectorAll(".id, .question, .text")].map((each) => each.textContent).join("\n").toLowerCase());
  const files = Number(filters.dataset.files);
  const value = (id) => document.getElementById(id)?.value ?? "";

  const fits = (card, text) => {
    const wrong = card.dataset.wrong.split(" ").filter(Boolean);
    const verdict = value("verdict");
    if (verdict === "any" && wrong.length === 0) return false;
    if (verdict === "every" && wrong.length < files) return false;
    if (/^\d+$/.test(verdict) && !wrong.includes(verdict)) return false;
    if (document.getElementById("differ")?.checked && !card.dataset.differ) return false;
    if (value("type") && card.dataset.type !== value("type")) return false;
    return value("search").toLowerCase().split(/\s+/).every((word) => text.includes(word));
  };

  const show = () => {
    let shown = 0;
    cards.forEach((card, k) => {
      card.hidden = !fits(card, texts[k]);
      shown += card.hidden ? 0 : 1;
    });
    document.getElementById("shown").textContent = `${shown} of ${cards.length} samples`;
    document.getElementById("nothing").hidden = shown > 0 || cards.length === 0;
  };

  const look = () => {
    for (const card of cards) {
      const all = [...card.querySelectorAll(".looks input")];
      const wanted = all.find((input) => input.value === value("look")) ?? all[0];
      if (wanted) wanted.checked = true;
    }
  };

  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", (event) => (event.target.id === "look" ? look() : show()));
  filters.reset();
  show();
})();
