"""The weights hub: every published checkpoint fetched once, verified always, usable in the dark."""

from deit_zoo.weights import cache as cache  # by these names until 0.3
from deit_zoo.weights import fetch as fetch
