// What Swagger UI lacks: quick references, a key that is checked and kept for the tab, a filter for every word, and answers that end.
(() => {
  "use strict";

  const { document: address, check } = document.getElementById("swagger-ui").dataset;
  const SCHEME = "key";
  const SAVED = "convener.key";
  const STREAM_SECONDS = 10;
  const MAX_BYTES = 512 * 1024;
  // To colour a longer text takes the browser seconds, in which it does nothing else.
  const COLOURED_CHARACTERS = 16 * 1024;

  // Why the service does not take a key; null when it does.
  async function refusal(key) {
    if (!key) return "paste a key: `convener key create operator --label me` makes one";
    let answer;
    try {
      answer = await fetch(check, { headers: { Authorization: `Bearer ${key}` }, cache: "no-store" });
    } catch (error) {
      return `the key could not be checked: ${error.message}`;
    }
    if (answer.ok) return null;
    const problem = await answer.json().catch(() => ({}));
    const reason = problem.detail ?? `the service answered ${answer.status}`;
    if (answer.status !== 401) return `the key could not be checked: ${reason}`;
    sessionStorage.removeItem(SAVED);
    return `this key is not valid here: ${reason}`;
  }

  const checkedKeys = {
    statePlugins: {
      auth: {
        wrapActions: {
          authorize: (authorize, system) => async (payload) => {
            const entry = payload[SCHEME];
            const key = (entry?.value ?? "").trim().replace(/^Bearer\s+/i, "");
            const message = await refusal(key);
            system.errActions.clear({ source: "auth" });
            if (message) {
              system.errActions.newAuthErr({ authId: SCHEME, source: "auth", level: "error", message });
              return;
            }
            sessionStorage.setItem(SAVED, key);
            authorize({ ...payload, [SCHEME]: { ...entry, value: key } });
          },
          logout: (logout) => (names) => {
            sessionStorage.removeItem(SAVED);
            return logout(names);
          },
        },
      },
    },
  };

  // Swagger UI's own filter compares names of tags only.
  const wholeFilter = {
    fn: {
      opsFilter: (tags, phrase) => {
        const words = phrase.toLowerCase().split(/\s+/).filter(Boolean);
        const has = (text) => words.every((word) => text.toLowerCase().includes(word));
        const text = (entry) => {
          const operation = entry.get("operation");
          const names = ["operationId", "summary", "description"].map((name) => operation.get(name, ""));
          return [entry.get("method"), entry.get("path"), ...names].join(" ");
        };
        return tags
          .map((tag, name) =>
            has(name) ? tag : tag.update("operations", (list) => list.filter((entry) => has(`${name} ${text(entry)}`))),
          )
          .filter((tag) => tag.get("operations").size > 0);
      },
    },
    statePlugins: {
      layout: {
        wrapSelectors: {
          // What a filter has selected is in view, unless somebody has closed it.
          isShown: (isShown) => (state, thing, otherwise) => {
            const filter = state.get("filter");
            const selects = typeof filter === "string" && filter !== "" && thing[0] === "operations-tag";
            return isShown(thing, otherwise || selects);
          },
        },
      },
    },
  };

  // Swagger UI takes the whole document apart for each part of it that is opened, seconds each time. Ours refers to its
  // own components only.
  const quickReferences = {
    fn: {
      resolveSubtree: async (whole, path) => {
        const at = (value, names) => names.reduce((inner, name) => inner?.[name], value);
        const resolved = (value, within) => {
          if (Array.isArray(value)) return value.map((item) => resolved(item, within));
          if (value === null || typeof value !== "object") return value;
          const reference = value.$ref;
          if (typeof reference !== "string" || !reference.startsWith("#/")) {
            return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolved(item, within)]));
          }
          // What contains itself ends with its name.
          const title = reference.split("/").at(-1);
          if (within.includes(reference)) return { title, type: "object" };
          const target = at(whole, reference.slice(2).split("/"));
          return resolved(target, [...within, reference]);
        };
        return { spec: resolved(at(whole, path), []), errors: [] };
      },
    },
  };

  const plainLongTexts = {
    wrapComponents: {
      SyntaxHighlighter: (Highlighter, system) => (props) => {
        const { React, getComponent } = system.getSystem();
        const text = props.children;
        const isLong = typeof text === "string" && text.length > COLOURED_CHARACTERS;
        return isLong
          ? React.createElement(getComponent("PlainTextViewer"), null, text)
          : React.createElement(Highlighter, props);
      },
    },
  };

  // The answer as far as it has come after 10 s for a stream, which has no end, and up to 512 KiB for all others.
  async function fetchBounded(url, options) {
    const stop = new AbortController();
    const answer = await fetch(url, { ...options, signal: stop.signal });
    if (!answer.body) return answer;
    const isStream = (answer.headers.get("content-type") ?? "").startsWith("text/event-stream");
    const timer = isStream ? setTimeout(() => stop.abort(), STREAM_SECONDS * 1000) : undefined;
    const parts = [];
    let size = 0;
    try {
      for (const reader = answer.body.getReader(); size <= MAX_BYTES; ) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        size += value.length;
      }
    } catch (error) {
      if (!stop.signal.aborted) throw error;
      parts.push(new TextEncoder().encode(`\n: this page has read the stream for ${STREAM_SECONDS} s\n`));
    }
    clearTimeout(timer);
    if (size > MAX_BYTES) {
      stop.abort();
      parts.push(new TextEncoder().encode("\n... and more: this page shows 512 KiB of an answer"));
    }
    return new Response(new Blob(parts), answer);
  }

  const ui = SwaggerUIBundle({
    url: address,
    dom_id: "#swagger-ui",
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [() => quickReferences, () => checkedKeys, () => wholeFilter, () => plainLongTexts],
    layout: "BaseLayout",
    deepLinking: true,
    docExpansion: "none",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    filter: true,
    requestInterceptor: (request) => (request.loadSpec ? request : { ...request, userFetch: fetchBounded }),
    onComplete: () => {
      const saved = sessionStorage.getItem(SAVED);
      if (saved) ui.preauthorizeApiKey(SCHEME, saved);
      const filter = document.querySelector(".operation-filter-input");
      filter.placeholder = "Filter by words of paths, names and texts";
      filter.setAttribute("aria-label", filter.placeholder);
    },
  });
})();
