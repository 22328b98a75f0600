"""Every performance claim of the project, each a command: `python -m benchmarks NAME`."""
