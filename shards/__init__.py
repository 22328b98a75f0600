"""Cuts a SavedModel, knows what a slice is and where its bytes lie, holds and computes on it."""
