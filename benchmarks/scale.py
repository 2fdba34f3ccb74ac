"""Do ingest, claims and status stay flat while the store grows to ten million calls?

    python -m benchmarks.scale                      # PostgreSQL to 10 M calls, SQLite to 1 M
    python -m benchmarks.scale --rows 10000 100000  # smaller

1,000 agents in one store. The table is filled by the database; measured are our own calls:
``store.calls.add``, ``claims.make`` and what a status page asks. Needs 30 GB of free disk for
10 M calls, and gives it back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.scale_fill import AGENTS, USABLE_OF_TEN, fill, prepare
from slm_core.local_stack.postgres import ensure_database, throwaway_postgres
from slm_core.records import Call, ClaimState, Message, utc_now
from slm_core.store import Store, migrate_store, open_store
from slm_core.store.schema import REVISION

BATCH = 500
"""Calls that the drain adds in one transaction."""
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000]
    )
    parser.add_argument("--sqlite-rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--migrate-at", type=int, default=1_000_000, help="time a downgrade and upgrade here"
    )
    parser.add_argument("--teams", type=int, default=50, help="stores of one PostgreSQL server")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each kind")
    parser.add_argument("--out", type=Path, default=Path(".slm/scale"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for database, sizes in (("SQLite", options.sqlite_rows), ("PostgreSQL", options.rows)):
        if not sizes:
            continue
        with new_database(database) as url:
            if database == "PostgreSQL" and options.teams:
                print(json.dumps(stores_of_teams(url, options.teams)), flush=True)
            for row in measure(url, sizes, options):
                found.append({"database": database, **row})
                (options.out / "scale.json").write_text(json.dumps(found, indent=1))
                print(table(found[-1:]), flush=True)
    print(table(found))
    plot(found, options.out / "scale.png")


@contextmanager
def new_database(kind: str) -> Iterator[str]:
    """Yield the URL of an empty database that is gone afterwards."""
    if kind == "SQLite":
        with tempfile.TemporaryDirectory(prefix="slm-scale-") as folder:
            yield f"sqlite:///{folder}/store.db"
        return
    with throwaway_postgres(durable=True) as url:
        ensure_database(url, "scale")
        yield url.rsplit("/", 1)[0] + "/scale"


def stores_of_teams(url: str, teams: int) -> dict[str, Any]:
    """Give each team a store of its own on one server; return what each costs."""
    made: list[float] = []
    opened: list[float] = []
    server = url.rsplit("/", 1)[0]
    for number in range(teams):
        began = time.perf_counter()
        ensure_database(url, f"team_{number}")
        open_store(f"{server}/team_{number}").close()
        made.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        open_store(f"{server}/team_{number}").close()
        opened.append((time.perf_counter() - began) * 1000)
    engine = sa.create_engine(f"{server}/team_0")
    with engine.connect() as connection:
        size = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar()
    engine.dispose()
    figures = {"make_ms": percentiles(made), "open_ms": percentiles(opened)}
    return {"teams": teams, "bytes_each": size, **figures}


def migrate(url: str) -> dict[str, float]:
    """Go back to the first revision and forward again; return the seconds of each."""
    seconds: dict[str, float] = {}
    for what, to in (("downgrade_seconds", "0001"), ("upgrade_seconds", REVISION)):
        began = time.perf_counter()
        migrate_store(url, to)
        seconds[what] = round(time.perf_counter() - began, 1)
    return seconds


def measure(url: str, sizes: list[int], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures at each size."""
    open_store(url).close()
    engine = sa.create_engine(url)
    dialect = prepare(engine)
    filled = 0
    with open_store(url) as store:
        for size in sizes:
            began = time.perf_counter()
            fill(engine, dialect, filled, size - 1)
            filled = size
            seconds = round(time.perf_counter() - began, 1)
            store.claims.make()  # the fill leaves less than a claim; begin with an empty hand
            check(store, size)
            times, cpu = rounds(store, size, options.rounds)
            if size == options.migrate_at:
                print(json.dumps({"rows": size, **migrate(url)}), flush=True)
            yield {
                "rows": store.calls.count(),
                "fill_seconds": seconds,
                **sizes_of(engine),
                "load": os.getloadavg()[0],
                "ms": {what: percentiles(found) for what, found in times.items()},
                "cpu_ms": {what: round(statistics.mean(found), 2) for what, found in cpu.items()},
            }
        last = prune(store, engine)
    print(json.dumps(last), flush=True)
    engine.dispose()


def check(store: Store, size: int) -> None:
    """Stop unless the store agrees that it holds what ``add`` would have left."""
    if size > 10_000:
        return
    # In the fill, digests of calls and ids of claims are unique names in place of content ids.
    names = ("have another digest", "holds other calls than when it was made")
    wrong = [line for line in store.verify() if not line.endswith(names)]
    if wrong:
        raise SystemExit(f"the fill made a wrong store: {wrong[:5]}")


def rounds(store: Store, size: int, times_each: int) -> tuple[Times, Times]:
    """Ingest, claim and ask, again and again; return milliseconds, by the clock and of CPU."""
    times: Times = {}
    cpu: Times = {}
    backend = cpu_clock(store)

    def timed(what: str, work: Callable[[], Any]) -> Any:
        cpu_began, began = time.process_time() + backend(), time.perf_counter()
        result = work()
        times.setdefault(what, []).append((time.perf_counter() - began) * 1000)
        used = time.process_time() + backend() - cpu_began
        cpu.setdefault(what, []).append(used * 1000)
        return result

    for number in range(times_each):
        calls = new_calls(size, number)
        added = timed("ingest 500", lambda calls=calls: store.calls.add(calls, objection))
        again = timed("ingest again", lambda calls=calls: store.calls.add(calls, objection))
        if (added.stored, again.duplicates) != (BATCH, BATCH):
            raise SystemExit(f"ingest did not do its work: {added}, {again}")
        if not timed("make claims", store.claims.make):
            raise SystemExit("no claim was made of 150 usable calls")
        taken = timed("take claim", lambda: store.claims.take_next("run"))
        timed("claim's calls", lambda taken=taken: list(store.calls.select(claim_id=taken.id)))
        timed("close claim", lambda taken=taken: store.claims.done(taken.id, "run"))
        timed("waiting", store.calls.waiting)
        timed("count", store.calls.count)
        timed("reasons", store.calls.unusable)
        timed("new claims", lambda: store.claims.list(ClaimState.NEW))
        agent = f"agent-{number * 31 % AGENTS}"
        timed("stats, agent", lambda agent=agent: store.calls.stats(agent))
        timed("stats, all", store.calls.stats)
        timed("one call", lambda calls=calls: store.calls.get(calls[0].id))
    return times, cpu


def cpu_clock(store: Store) -> Callable[[], float]:
    """Return what tells the CPU seconds of the database's process that serves ``store``.

    Unlike the clock on the wall it does not depend on what else runs on the machine.
    """
    if store.url.startswith("sqlite"):
        return lambda: 0.0  # SQLite runs in this process
    with store._database.read() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    file = Path(f"/proc/{pid}/schedstat")
    return lambda: int(file.read_text().split()[0]) / 1e9


def new_calls(size: int, number: int) -> list[Call]:
    """Return calls that the store has not met, spread over the agents."""
    first = number * BATCH
    return [
        Call(
            id=f"new-{size}-{n}",
            agent_type="sub-agent",
            agent_name=f"agent-{n * 7 % AGENTS}",
            model="gpt-4o",
            conversation_id=f"new-{size}-{n // 5}",
            messages=(
                Message(role="system", content=f"Answer for desk {n * 7 % AGENTS}."),
                Message(role="user", content=f"Please look up record {n} of size {size}. " * 3),
            ),
            response='{"name":"look_up","arguments":{"record":' + f"{n}}}}}",
            success=True,
            prompt_tokens=210,
            completion_tokens=24,
            cost_nanousd=765_000,
            seconds=0.2 + n % 97 / 50,
            created_at=utc_now(),
        )
        for n in range(first, first + BATCH)
    ]


def objection(call: Call) -> str | None:
    return None if int(call.id.rsplit("-", 1)[1]) % 10 < USABLE_OF_TEN else "exact duplicate"


def percentiles(times: list[float]) -> tuple[float, float]:
    """Return p50 and p95, in milliseconds."""
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    return round(cuts[9], 2), round(cuts[18], 2)


def sizes_of(engine: sa.Engine) -> dict[str, int]:
    """Return the bytes of the calls, their texts, and the indexes of both."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
            page = connection.exec_driver_sql("PRAGMA page_size").scalar() or 0
            return {"bytes": pages * page}
        row = connection.exec_driver_sql(
            "SELECT pg_table_size('calls') AS calls, pg_indexes_size('calls') AS call_indexes, "
            "sum(pg_table_size(relid)) FILTER (WHERE isleaf) AS texts, "
            "sum(pg_indexes_size(relid)) FILTER (WHERE isleaf) AS text_indexes, "
            "pg_database_size(current_database()) AS bytes FROM pg_partition_tree('call_bodies')"
        ).one()
        return {name: int(value) for name, value in row._mapping.items()}


def prune(store: Store, engine: sa.Engine) -> dict[str, Any]:
    """Prune all but the present month, and say what that took and gave back."""
    before, began = sizes_of(engine), time.perf_counter()
    now = utc_now()
    done = store.calls.prune(now.year * 100 + now.month)
    return {
        "pruned": sum(one.pruned for one in done),
        "kept": sum(one.kept for one in done),
        "months": len(done),
        "prune_seconds": round(time.perf_counter() - began, 1),
        "bytes_before": before,
        "bytes_after": sizes_of(engine),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Return a Markdown table: for each question p50 / p95 in milliseconds, and CPU ms."""
    heads = [f"{row['database']}, {row['rows']:,}" for row in found]
    lines = [
        f"| ms: p50 / p95 (CPU) | {' | '.join(heads)} |",
        f"| --- |{' --: |' * len(found)}",
    ]
    for what in found[0]["ms"]:
        figures = [
            f"{row['ms'][what][0]:,.1f} / {row['ms'][what][1]:,.1f} ({row['cpu_ms'][what]:,.1f})"
            for row in found
        ]
        lines.append(f"| {what} | {' | '.join(figures)} |")
    for what in ("calls", "call_indexes", "texts", "text_indexes", "bytes"):
        figures = [f"{row[what] / 1e6:,.0f} MB" if what in row else "" for row in found]
        lines.append(f"| {what.replace('_', ' ')} | {' | '.join(figures)} |")
    lines.append(
        f"| load of the machine | {' | '.join(format(row['load'], '.1f') for row in found)} |"
    )
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw CPU time against rows, one panel for each database."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    databases = list(dict.fromkeys(row["database"] for row in found))
    figure, panels = plt.subplots(
        1, len(databases), figsize=(6.5 * len(databases), 5), sharey=True, squeeze=False
    )
    for panel, database in zip(panels[0], databases, strict=True):
        rows = [row for row in found if row["database"] == database]
        for number, what in enumerate(rows[0]["ms"]):
            panel.plot(
                [row["rows"] for row in rows],
                [row["cpu_ms"][what] for row in rows],
                marker="os^Dv"[number % 5],
                color=plt.get_cmap("tab20")(number),
                label=what,
            )
        panel.set(xscale="log", yscale="log", title=database, xlabel="calls in the store")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("CPU milliseconds, ours and the database's")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
