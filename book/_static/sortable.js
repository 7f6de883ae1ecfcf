// A click on the head of a table.sortable sorts its rows; numbers as numbers, what is missing at the end.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => {
      const text = row.cells[column].textContent.trim();
      const number = parseFloat(text.replace(/,/g, "").replace("−", "-"));
      return Number.isNaN(number) ? text : number;
    };
    const compare = (a, b) => {
      if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
      return typeof a === "number" ? -1 : 1;
    };
    const sort = (head, column) => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a, column), value(b, column)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    };
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      head.addEventListener("click", () => sort(head, column));
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          sort(head, column);
        }
      });
    });
  }
});
