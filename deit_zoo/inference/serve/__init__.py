"""A model that answers over HTTP: what arrives together is classified together, within bounds."""
