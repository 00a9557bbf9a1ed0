"""What the wheel carries: handwritten digits and three small checkpoints trained on them."""
