"""A finished run: its log, curve, receipt and picture."""
