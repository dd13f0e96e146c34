"""Layer 2 as the skill sees it: aria-api over HTTP."""
