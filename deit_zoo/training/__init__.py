"""Training that reproduces the checkpoints. Planning needs nothing; running needs `[train]`."""
