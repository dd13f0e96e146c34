"""Background work: each job is one step, and a loop that repeats it."""
