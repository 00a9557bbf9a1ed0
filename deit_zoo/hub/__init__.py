"""The weights hub: every published checkpoint fetched once, verified always, usable in the dark."""
