"""Cuts a SavedModel, says what a slice is and where its bytes lie, holds slices, computes on them."""
