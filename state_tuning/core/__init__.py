"""What every method shares: the algebra of states, the loss, and the step that trains them."""
