"""Accuracy over every image once."""
