// A link under every table of results: what it shows, as CSV. Made when asked for, so that a page from disk has it too.
document.addEventListener("DOMContentLoaded", () => {
  // The cells in rows and columns: one that spans several stands in each of them
  const grid = (table) => {
    const rows = [...table.rows].map(() => []);
    [...table.rows].forEach((row, i) => {
      for (const cell of row.cells) {
        const column = rows[i].findIndex((text) => text === undefined);
        const first = column < 0 ? rows[i].length : column;
        for (let down = 0; down < cell.rowSpan && i + down < rows.length; down++)
          for (let right = 0; right < cell.colSpan; right++) {
            const line = rows[i + down];
            while (line.length < first + right) line.push(undefined);
            line[first + right] = cell.textContent.trim().replace(/\s+/g, " ");
          }
      }
    });
    return rows;
  };
  const quoted = (text = "") => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const csv = (table) => {
    const rows = grid(table);
    const heads = table.tHead ? table.tHead.rows.length : 0;
    const names = rows[0].map((_, column) =>
      [...new Set(rows.slice(0, heads).map((row) => row[column]).filter(Boolean))].join(" "));
    return [names, ...rows.slice(heads)].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  };
  const page = location.pathname.replace(/.*\//, "").replace(/\.html$/, "");
  for (const box of document.querySelectorAll(".results-scroll")) {
    const table = box.querySelector("table.results");
    const link = document.createElement("a");
    link.textContent = "This table as CSV";
    link.download = `${page}-${table.id.replace(/^T_/, "")}.csv`;
    link.href = "#";
    link.addEventListener("click", () => {
      link.href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
    });
    const line = document.createElement("p");
    line.className = "results-download";
    line.append(link);
    box.after(line);
  }
});
