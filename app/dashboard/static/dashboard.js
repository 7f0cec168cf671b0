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
    // Before it is painted, which "htmx:load" may come after.
    localize(event.target);
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

  // Ages go on by themselves, by the clock of the server, in the words of the server.
  const ahead = Date.parse(document.body.dataset.now) - Date.now();
  const duration = (seconds) => {
    if (seconds < 1) return (1000 * seconds).toFixed(0) + " ms";
    if (seconds < 10) return seconds.toFixed(1) + " s";
    const whole = Math.round(seconds);
    if (whole < 60) return whole + " s";
    if (whole < 3600) return Math.floor(whole / 60) + " min " + (whole % 60) + " s";
    if (whole < 86400) return Math.floor(whole / 3600) + " h " + Math.floor((whole % 3600) / 60) + " min";
    return Math.floor(whole / 86400) + " d " + Math.floor((whole % 86400) / 3600) + " h";
  };
  const count = () => {
    if (document.hidden) return;
    const now = Date.now() + ahead;
    for (const age of document.querySelectorAll(".age")) {
      const { since, until } = age.dataset;
      age.textContent = duration(Math.max(0, since ? now - Date.parse(since) : Date.parse(until) - now) / 1000);
    }
  };
  setInterval(count, 1000);
})();

// Says at once where a value is outside of what the schema allows; the service checks everything again.
document.addEventListener("input", (event) => {
  const { low, high } = event.target.dataset;
  if (low === undefined) return;
  const value = Number(event.target.value);
  const isWrong = Number.isNaN(value) || (low !== "" && value < Number(low)) || (high !== "" && value > Number(high));
  event.target.setAttribute("aria-invalid", String(event.target.value !== "" && isWrong));
});
