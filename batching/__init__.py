"""Turns many tasks into few batches and back. Knows neither shards nor Ray."""
