"""Decorrelated backpropagation (DBP) as optax transforms."""
