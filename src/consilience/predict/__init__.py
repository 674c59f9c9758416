"""One surface of verbs for every family."""
