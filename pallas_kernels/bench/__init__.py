"""Times of the WKV-7 op beside those of other libraries: `python -m pallas_kernels.bench`."""
