// The page /sessions: says so when the rows that htmx asked for do not come.
"use strict";

function told(why) {
  document.getElementById("found").textContent = `Nothing new is shown: ${why}.`;
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
document.addEventListener("htmx:sendError", () => told("the service cannot be reached"));
