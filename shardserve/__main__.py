"""`python -m shardserve`: the same as the `shardserve` command."""

from shardserve.cluster.cli import main

if __name__ == "__main__":
    main()
