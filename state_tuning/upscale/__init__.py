"""Kernel upscaling of the state."""
