"""Test-time scaling: a larger model guides one prompt at a time."""
