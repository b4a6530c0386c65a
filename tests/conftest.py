"""Settings of every test run: how Hypothesis searches, lanes of workers, the matrix of rules."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.support.broken_rules", "tests.support.lanes"]

# No deadline: a busy machine is no bug. Not derandomised: each run looks somewhere else, and prints
# how to repeat what it found.
settings.register_profile("ci", deadline=None, max_examples=50, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
