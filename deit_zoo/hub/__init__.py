"""The weights hub: every published checkpoint fetched once, verified always, usable in the dark."""

from deit_zoo.weights import cache as cache  # by this name until 0.3
