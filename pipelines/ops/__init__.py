"""The ops: each reads its configuration, makes one call of the library or the engine, and reports."""
