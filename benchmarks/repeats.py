from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.lookup import one_core
from benchmarks.transport_cases import processes
from benchmarks.workloads import scatter, zipf_ranks
from shardserve.shards.address import Address, this_node
from shardserve.shards.handshake import Credentials
from shardserve.shards.memory import empty
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.server import serve_in_thread
from shardserve.shards.shard import Shard
from shardserve.shards.store import HostStore
from shardserve.shards.local import LocalChannel

CREDENTIALS = Credentials(b"a secret for the benchmark alone", "benchmark")
TABLE = 1 << 30


def rows_of(dim):
    return TABLE // (dim * 4)


def fill(out):
    out[:] = 1.0


def main(argument):
    path, dim, shards = argument.rsplit(":", 2)
    dim, shards = int(dim), int(shards)
    rows = empty((rows_of(dim) // shards, dim), np.float32)
    fill(rows)
    server = serve_in_thread(Shard([HostStore(rows)]), CREDENTIALS, unix_path=path, threads=1)
    print("listening", flush=True)
    sys.stdin.read()
    server.close()


async def connected(paths):
    channels = [
        ReplicatedChannel(f"shard {p}", [Address(path, node=this_node())], CREDENTIALS)
        for p, path in enumerate(paths)
    ]
    for c in channels:
        await c.connected()
    return channels


def experiment():
    from shardserve.router.repeats import Repeats, NEVER
    from shardserve.router.rounds import Fanout, ask
    from shardserve.router.servable import RequestContext
    from shardserve.shards.cut.lookups import Lookup, Motif, BadIds
    from shardserve.shards import layout as layouts
    from shardserve.shards.layout import Layout
    from shardserve.shards.tables import Table

    rng = np.random.default_rng(0)
    with one_core(), ExitStack() as stack:
        loop = asyncio.new_event_loop()
        for dim in (16, 64, 128):
          for shards in (4, 1, 0):
            with ExitStack() as inner:
                table = Table("t", "float32", rows_of(dim), (dim,))
                look = Lookup("out:0", "t", "node", Motif.GATHER, "ids:0", BadIds.GATHER) if False else make_lookup()
                n_shards = max(shards, 1)
                lay = Layout(n_shards, 1, {"t": layouts.row_mod(table, list(range(n_shards))) if n_shards > 1 else layouts.row_mod(table, [0])})
                if shards:
                    d = inner.enter_context(tempfile.TemporaryDirectory())
                    paths = [str(Path(d, f"{p}.sock")) for p in range(shards)]
                    inner.enter_context(processes("benchmarks.repeats", [f"{p}:{dim}:{shards}" for p in paths]))
                    channels = loop.run_until_complete(connected(paths))
                    def close(ch=channels):
                        for c in ch:
                            loop.run_until_complete(c.close())
                    inner.callback(close)
                else:
                    rows = empty((rows_of(dim), dim), np.float32); fill(rows)
                    channels = [LocalChannel(Shard([HostStore(rows)]))]
                fan = {m: Fanout(lay, {"t": table}, Repeats(lambda i, r, v=v: v)) for m, v in (("never", NEVER), ("always", 0.0))}
                for n in (256, 2000, 20000, 160000):
                    for alpha in (0.0, 0.9, 1.1, 1.3):
                        ts = {m: [] for m in fan}
                        uq = []
                        for r in range(9 if n < 100000 else 5):
                            for m, f in fan.items():
                                ids = scatter(zipf_ranks(rng, table.rows, n, alpha), table.rows)
                                uq.append(len(np.unique(ids)) / n)
                                t = time.perf_counter()
                                split = f.split([look], {"ids:0": ids})
                                ctx = RequestContext("b", time.monotonic() + 60)
                                rep = loop.run_until_complete(ask(split, channels, ctx))
                                f.merge(split, rep)
                                ts[m].append(time.perf_counter() - t)
                        a, b = (np.median(ts[m]) / n * 1e9 for m in ("never", "always"))
                        print(f"dim {dim} shards {shards} n {n} alpha {alpha} repeats {1-np.mean(uq):.3f}: never {a:.0f} always {b:.0f} ns/id  ratio {a/b:.2f}", flush=True)


def make_lookup():
    from shardserve.shards.cut import lookups as L
    import dataclasses, inspect
    return L.Lookup(output="out:0", table="t", node="n", motif=L.Motif.GATHER, ids="ids:0", bad_ids=L.BadIds.GATHER)


if __name__ == "__main__":
    if sys.argv[1] == "exp":
        experiment()
    else:
        main(sys.argv[1])
