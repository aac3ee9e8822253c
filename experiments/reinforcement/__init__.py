"""Runs that learn from rewards: prompts, pass rates, the job of a run and its report."""
