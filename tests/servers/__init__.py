"""Real servers of object stores, from packages, that tests start on the loopback."""
