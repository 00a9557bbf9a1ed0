"""Prediction: classify, the optimized copy, export, attention."""
