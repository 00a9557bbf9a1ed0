"""Recipes by the name of the model that they train."""
RECIPES: dict = {}
