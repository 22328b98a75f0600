"""What should run where, and making it so: config, versions, placement, health, command line."""
