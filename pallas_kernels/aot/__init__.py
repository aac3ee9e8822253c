"""Compile the kernels for hardware that is not attached: `python -m pallas_kernels.aot --target v5e`."""
