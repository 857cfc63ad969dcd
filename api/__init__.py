"""The front doors: Event Service, Replay Service and the command line."""
