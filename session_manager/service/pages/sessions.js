// The pages with rows: say so when those that htmx asked for do not come, and keep the keyboard where they are.
"use strict";

function told(why) {
  document.getElementById("found").textContent = `The page could not be updated: ${why}.`;
}

document.addEventListener("htmx:responseError", ({ detail }) => {
  let problem = {};
  try {
    problem = JSON.parse(detail.xhr.responseText);
  } catch {
    // Whoever answered was not this service.
  }
  told(problem.error || `the service answers ${detail.xhr.status}`);
});
document.addEventListener("htmx:afterSettle", () => {
  // The link that was followed may be gone: the last page has no older one.
  if (document.activeElement === document.body) document.getElementById("history").focus({ preventScroll: true });
});
document.addEventListener("htmx:sendError", () => told("the service cannot be reached"));
document.addEventListener("DOMContentLoaded", () => {
  // "Back", pressed again before htmx listened, has changed the address alone: show the page that it names.
  const [shown] = performance.getEntriesByType("navigation");
  if (shown && shown.name.split("#")[0] !== location.href.split("#")[0]) location.reload();
});
