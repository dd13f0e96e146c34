"""Background jobs: each is one step, and a loop that repeats it."""
