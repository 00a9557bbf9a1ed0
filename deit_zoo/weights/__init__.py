"""From a record to verified bytes to a model."""
