"""Serve TensorFlow SavedModels too big for one machine, behind TensorFlow Serving's wires."""

__version__ = "0.1.0"
