"""Real parts for tests: servers as processes, and waiting without guessing."""
