"""Training images in Pillow's arithmetic, many at once: as torch operations, as Triton kernels."""
