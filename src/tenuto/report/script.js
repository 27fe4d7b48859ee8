"use strict";
// The page is complete without this: it adds sorting and the switches for all cards at once.
(() => {
  const valueOf = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === undefined ? null : Number(text);
  };

  document.querySelectorAll("tbody.methods").forEach((body) => {
    const headings = Array.from(body.parentElement.tHead.rows[0].cells);

    const sortBy = (column, direction) => {
      const rows = Array.from(body.rows);
      rows.sort((left, right) => {
        const a = valueOf(left, column), b = valueOf(right, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return direction * (a - b);
      });
      body.append(...rows);
      headings.forEach((heading, i) => {
        if (i === column) heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else heading.removeAttribute("aria-sort");
      });
    };

    headings.forEach((heading, column) => {
      // Not a <button>: browsers leave those out where a printed table repeats its headings.
      const title = heading.querySelector(".heading");
      title.setAttribute("role", "button");
      title.tabIndex = 0;
      title.title = "Sort by " + title.textContent;
      // The better end first; a second click turns the order round.
      const first = ["higher", ""].includes(heading.dataset.better) ? -1 : 1;
      const turn = () => {
        const now = { ascending: 1, descending: -1 }[heading.getAttribute("aria-sort")];
        sortBy(column, now ? -now : first);
      };
      title.addEventListener("click", turn);
      title.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        turn();
      });
    });
  });

  document.querySelectorAll(".switch-all").forEach((line) => {
    line.hidden = false;
    line.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      const ends = `input[name^="${line.dataset.group}-"][id$="-${button.dataset.view}"]`;
      document.querySelectorAll(ends).forEach((radio) => { radio.checked = true; });
    }));
  });
})();
