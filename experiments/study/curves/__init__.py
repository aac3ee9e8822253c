"""Learning curves: methods on benchmarks at several budgets, each with its own learning rate at each of them."""
