"""What tests stand on: a Hub on loopback, commands as processes, trees of processes, fixtures."""
