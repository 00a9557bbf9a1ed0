"""One readable file per architecture family, and the layers they share."""
