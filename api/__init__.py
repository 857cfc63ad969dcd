"""The front doors: Event Service, Replay Service and the command line."""

import gc

gc.set_threshold(20_000, 50, 100)
# Importing makes a hundred thousand objects that stay; looking through them after every 700 took a third of
# the time to start. `collect_rarely` takes over once all is loaded.
