// What pages cannot do by themselves: pause what is live while nobody looks, and leave alone what somebody fills in.
"use strict";
(() => {
  const sources = new Set();
  htmx.createEventSource = (url) => {
    const source = new EventSource(url);
    sources.add(source);
    return source;
  };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      for (const source of sources) source.close();
      sources.clear();
      return;
    }
    for (const live of document.querySelectorAll("[data-live]")) {
      if (live.querySelector("details.act[open]")) continue;
      // A fresh element connects anew, and is told everything.
      const fresh = live.cloneNode(true);
      live.replaceWith(fresh);
      htmx.process(fresh);
    }
  });

  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    const target = event.target;
    const focused = target.contains(document.activeElement) && document.activeElement;
    if (target.querySelector("details.act[open]") || (focused && focused.matches("input, select, textarea"))) {
      event.preventDefault();
      return;
    }
    target.toggleAttribute("data-notes", Boolean(target.querySelector("details.notes[open]")));
  });
  document.addEventListener("htmx:sseMessage", (event) => {
    const notes = event.target.querySelector("details.notes");
    if (notes && event.target.hasAttribute("data-notes")) notes.open = true;
  });

  // Times in the reader's own zone; the server writes UTC.
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
  const localize = (root) => {
    for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
      const moment = new Date(time.dateTime);
      if (!time.dateTime || Number.isNaN(moment.valueOf())) continue;
      time.title = time.textContent + " UTC";
      time.textContent = format.format(moment);
    }
  };
  document.addEventListener("htmx:load", (event) => localize(event.target));
  localize(document);
})();

// Says at once where a value is outside of what the schema allows; the service checks everything again.
document.addEventListener("input", (event) => {
  const { low, high } = event.target.dataset;
  if (low === undefined) return;
  const value = Number(event.target.value);
  const isWrong = Number.isNaN(value) || (low !== "" && value < Number(low)) || (high !== "" && value > Number(high));
  event.target.setAttribute("aria-invalid", String(event.target.value !== "" && isWrong));
});
