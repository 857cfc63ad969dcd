"""The migration itself, and the Dagster ops, jobs, schedules and sensors that run it."""
