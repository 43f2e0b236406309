// What the catalog adds where scripts run: buttons that copy, and "/" for the search. Every page works without it.
"use strict";
for (const figure of document.querySelectorAll("figure.code")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  const title = figure.querySelector("figcaption").textContent;
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${title}`);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(figure.querySelector("code").textContent);
    } catch {
      said = "Select it";
      getSelection().selectAllChildren(figure.querySelector("code"));
    }
    button.textContent = said;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  figure.append(button);
}
document.addEventListener("keydown", (event) => {
  const find = document.getElementById("find");
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "/" && find && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    find.focus();
    find.select();
  }
});
