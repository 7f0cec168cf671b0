// What pages cannot do by themselves: pause what is live while nobody looks, and leave alone what somebody fills in.
"use strict";
(() => {
  const SILENCE = 15000; // milliseconds, three times as long as between two signs of life
  const SHORTEST_REST = 1000; // milliseconds before what has failed is tried again; doubled each time
  const LONGEST_REST = 64000;
  const LONGEST_ANSWER = 30000; // milliseconds, after which a form may be sent again
  const MOST_PIECES = 2000; // of an output that is open for long; the first of them stay
  const FIRST_PIECES = 200;
  const sources = new Set();
  // The service says every few seconds that it is there, beside what has changed.
  let heardAt = Date.now();
  let wokeAt = heardAt;
  let triedAt = heardAt;
  let patience = SILENCE;
  const hear = () => {
    heardAt = Date.now();
    patience = SILENCE;
    tellAge(false);
  };
  const missed = new Map();
  htmx.createEventSource = (url) => {
    // What is shown already is not sent again, and what came before and waits for a form is, where it is still so.
    for (const place of missed.keys()) place.classList.remove("held");
    missed.clear();
    const address = new URL(url, location);
    for (const { parentElement, dataset } of document.querySelectorAll("[sse-swap] > [data-mark]")) {
      address.searchParams.append("mark", parentElement.getAttribute("sse-swap") + ":" + dataset.mark);
    }
    const source = new EventSource(address);
    // A page that is opened behind another is connected once it is in front.
    if (document.hidden) source.close();
    source.addEventListener("alive", ({ data }) => {
      hear();
      document.getElementById("other-edition").hidden = data === document.body.dataset.edition;
    });
    // Closed by an answer that is no stream: the session is over, or a proxy answers for the service.
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      sources.delete(source);
      tellAge(true);
    });
    sources.add(source);
    return source;
  };

  // Somebody fills in a form there, presses something, or has marked text, which a change must not take away; or reads
  // with all changes held.
  let pressed = null;
  const hold = document.getElementById("hold");
  const isHeld = () => hold.getAttribute("aria-pressed") === "true";
  const isBusy = (place) => {
    const focused = place.contains(document.activeElement) && document.activeElement;
    const isTyping = focused && focused.matches("input, select, textarea");
    const selection = getSelection();
    const isMarked = !selection.isCollapsed && selection.containsNode(place, true);
    return isHeld() || isTyping || isMarked || place.contains(pressed) || place.querySelector("details.act[open]");
  };
  // The same control in a later text of a place has the same form, or the same address.
  const signature = (control) =>
    (control.closest("details.act")?.querySelector("form") ?? control.cloneNode(false)).outerHTML;
  // Keeps in a place what its reader has done there: the focus, open notes, and how far tables are scrolled aside.
  // What has the focus may be gone, as the button of a worker that has ended: then what it was in has it.
  const keep = (place) => {
    const active = document.activeElement;
    const focused = active !== place && place.contains(active) && active;
    const kept = focused && signature(focused);
    const equals = (where) => [...where.querySelectorAll(focused.tagName)].filter((one) => signature(one) === kept);
    const position = focused && equals(place).indexOf(focused);
    const hasNotes = place.querySelector("details.notes[open]");
    const tables = [...place.querySelectorAll(".scroll")].map((table) => table.scrollLeft);
    return (fresh) => {
      const notes = fresh.querySelector("details.notes");
      if (notes && hasNotes) notes.open = true;
      fresh.querySelectorAll(".scroll").forEach((table, number) => { table.scrollLeft = tables[number] || 0; });
      if (!focused) return;
      const same = equals(fresh)[position] ?? equals(fresh).at(-1) ?? fresh.querySelector(".scroll") ?? fresh;
      if (same === fresh) fresh.tabIndex = -1;
      same.focus({ preventScroll: true });
    };
  };
  const disconnect = () => {
    for (const source of sources) source.close();
    sources.clear();
  };
  // A fresh element connects anew, and is told everything.
  const connectAnew = (live) => {
    const fresh = live.cloneNode(true);
    const restore = keep(live);
    live.replaceWith(fresh);
    // Else it would connect once more where it was about to try again.
    live.removeAttribute("sse-connect");
    htmx.process(fresh);
    restore(fresh);
  };

  const restores = new WeakMap();
  const asleep = new Set();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      disconnect();
      for (const wait of waits()) htmx.trigger(wait, "htmx:abort");
      return;
    }
    wokeAt = Date.now();
    missed.clear();
    for (const live of document.querySelectorAll("[data-live]")) {
      if (!isBusy(live)) connectAnew(live);
      else {
        asleep.add(live);
        live.classList.add("held");
      }
    }
    for (const wait of waits()) htmx.trigger(wait, "again");
  });

  // Output that is waited for: only while somebody looks, as a browser has six connections to a service in all.
  const waits = () => document.querySelectorAll("[hx-get]");
  let rest = SHORTEST_REST;
  document.addEventListener("htmx:beforeRequest", (event) => { if (document.hidden) event.preventDefault(); });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.successful) return;
    rest = SHORTEST_REST;
    hear();
    trim(document.getElementById("output"));
  });
  // A page that is left open would grow for as long as its task writes.
  const trim = (output) => {
    if (output.childElementCount <= MOST_PIECES) return;
    let gap = output.querySelector(".gap");
    if (!gap) {
      gap = document.createElement("span");
      gap.className = "gap muted";
      gap.textContent = "… what came here is left out of this page …\n";
      output.children[FIRST_PIECES].before(gap);
    }
    while (output.childElementCount > MOST_PIECES) gap.nextSibling.remove();
  };
  const tryAgain = (event) => {
    tellAge(true);
    setTimeout(() => { if (event.target.isConnected) htmx.trigger(event.target, "again"); }, rest);
    rest = Math.min(2 * rest, LONGEST_REST);
  };
  for (const failure of ["sendError", "responseError", "timeout"]) {
    document.addEventListener("htmx:" + failure, tryAgain);
  }

  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    hear();
    missed.delete(event.target);
    if (isBusy(event.target)) {
      event.preventDefault();
      missed.set(event.target, event.detail.data);
      event.target.classList.add("held");
      return;
    }
    event.target.classList.remove("held");
    restores.set(event.target, keep(event.target));
  });
  const verdictIn = (place) => place.querySelector("[data-verdict]");
  let spoken = verdictIn(document)?.dataset.verdict;
  // The row that the address names stays marked in a later text of its table, which is no target of the browser.
  const point = () => {
    const named = location.hash && document.getElementById(location.hash.slice(1));
    if (named && named.matches("tr")) named.setAttribute("aria-current", "true");
  };
  point();
  const changed = (place) => {
    restores.get(place)(place);
    point();
    // Before it is painted, which "htmx:load" may come after.
    localize(place);
    const verdict = verdictIn(place);
    if (!verdict || verdict.dataset.verdict === spoken) return;
    spoken = verdict.dataset.verdict;
    document.getElementById("spoken").textContent = verdict.querySelector("strong").textContent;
  };
  document.addEventListener("htmx:sseMessage", (event) => changed(event.target));

  // A task that is leased, tried again or over: the rest of its page tells of it as it was.
  let isOld = false;
  const showAnew = () => {
    const restore = keep(document.getElementById("main"));
    const scrolled = document.getElementById("output").scrollTop;
    const swapped = htmx.ajax("GET", location.href, { target: "#main", select: "#main", swap: "outerHTML" });
    swapped.then(() => {
      restore(document.getElementById("main"));
      document.getElementById("output").scrollTop = scrolled;
    });
  };
  document.addEventListener("htmx:beforeOnLoad", (event) => {
    if (!event.detail.xhr.getResponseHeader("HX-Refresh")) return;
    event.preventDefault();
    isOld = true;
    document.getElementById("main").classList.add("held");
    catchUp();
  });

  // What came while somebody filled in a form is shown once that is over.
  const catchUp = () => {
    if (isOld && !isBusy(document.getElementById("main"))) {
      isOld = false;
      showAnew();
    }
    for (const live of asleep) {
      if (isBusy(live)) continue;
      asleep.delete(live);
      live.classList.remove("held");
      wokeAt = Date.now();
      connectAnew(live);
    }
    for (const [place, html] of missed) {
      if (isBusy(place)) continue;
      missed.delete(place);
      place.classList.remove("held");
      restores.set(place, keep(place));
      htmx.swap(place, html, { swapStyle: "innerHTML" });
      changed(place);
    }
  };
  // After the focus is where it goes.
  for (const kind of ["toggle", "focusout"]) document.addEventListener(kind, () => setTimeout(catchUp), true);
  document.addEventListener("selectionchange", () => setTimeout(catchUp));
  // A click needs both of its ends on the same element. A menu takes away the second one.
  document.addEventListener("pointerdown", ({ target }) => { pressed = target; }, true);
  for (const kind of ["pointerup", "pointercancel", "contextmenu"]) {
    document.addEventListener(kind, () => setTimeout(() => {
      pressed = null;
      catchUp();
    }), true);
  }
  // What moves by itself can be held, for those who read slowly, or hear it.
  hold.hidden = !document.querySelector("[data-live]");
  hold.addEventListener("click", () => {
    hold.setAttribute("aria-pressed", String(!isHeld()));
    catchUp();
  });
  document.addEventListener("keydown", (event) => {
    const form = event.key === "Escape" && !event.isComposing && document.activeElement.closest("details.act[open]");
    if (!form) return;
    form.open = false;
    form.querySelector("summary").focus();
  });

  // Whoever presses twice, or once more while the answer takes its time, means it once.
  const sent = new Set();
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (sent.has(form)) event.preventDefault();
    sent.add(form);
    setTimeout(() => sent.delete(form), LONGEST_ANSWER);
  });
  addEventListener("pageshow", () => sent.clear());

  // Times in the reader's own zone, which each page names once; the server writes UTC.
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
  document.getElementById("zone").textContent = format.resolvedOptions().timeZone;
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
  // Says that what is shown is old, rather than let it pass for the present state.
  const tellAge = (isOld) => {
    const line = document.getElementById("stale");
    if (!line.hidden === isOld || !document.querySelector("[data-live], [hx-get]")) return;
    line.querySelector("time").textContent = format.format(new Date(heardAt));
    // The focus of the link in the line that goes would be lost.
    if (line.contains(document.activeElement)) document.getElementById("main").focus({ preventScroll: true });
    line.hidden = !isOld;
  };
  // A connection that something in between has forgotten, or that has slept with its computer, never ends by itself;
  // one that has ended is tried again already.
  const listenAnew = () => {
    const lives = [...document.querySelectorAll("[data-live]")];
    if (!sources.size || lives.some(isBusy) || Date.now() - Math.max(heardAt, wokeAt, triedAt) <= patience) return;
    triedAt = Date.now();
    patience = Math.min(2 * patience, LONGEST_REST);
    disconnect();
    lives.forEach(connectAnew);
  };
  const count = () => {
    if (document.hidden) return;
    const isSilent = Date.now() - Math.max(heardAt, wokeAt) > SILENCE;
    if (isSilent && !asleep.size && document.querySelector("[data-live]")) {
      tellAge(true);
      listenAnew();
    }
    if (isHeld()) return;
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
