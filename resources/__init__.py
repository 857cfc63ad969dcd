"""Dagster resources: the event system and the databases as jobs may use them, one resource a file."""
