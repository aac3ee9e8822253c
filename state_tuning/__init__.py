"""State tuning of RWKV-7: pure functions on states, and the step that trains them with every weight frozen."""
