"""What the commands do once their settings are parsed; these modules import JAX."""
