#!/usr/bin/env python3
"""Opens the logs of a run with DuckDB, polars and pyarrow, and compares what each of them sees.

usage: check_logs.py RUN_DIR [--exports DIR]

Sealed Parquet parts are read by all three, live streams by pyarrow and polars (DuckDB does not read them). Checks
schemas, metadata, row counts and values, prints a table, and exits with 1 if anything disagrees. Works on finished,
killed and running runs. With --exports it also checks <table>.parquet, .csv and .arrow in DIR.
"""

import glob
import io
import json
import math
import os
import sys

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

DICT = pa.dictionary(pa.int32(), pa.utf8())
COMMON = [
    ("run_id", DICT, False),
    ("ts", pa.timestamp("us", tz="UTC"), False),
    ("wall_s", pa.float64(), False),
    ("segment", pa.int32(), False),
    ("epoch", pa.int32(), False),
    ("step", pa.int64(), False),
    ("level", DICT, True),
]


def columns(table, patches):
    def flat(item):
        return pa.list_(pa.field("item", item, nullable=False), patches)

    further = {
        "metrics": [("name", DICT, False), ("value", pa.float64(), False), ("split", DICT, False), ("unit", DICT, False)],
        "masks": [
            ("sample_id", pa.int64(), False),
            ("label", pa.int32(), True),
            ("policy_version", pa.int64(), False),
            ("mask_ratio", pa.float32(), False),
            ("mask", flat(pa.bool_()), False),
            ("score", flat(pa.float32()), True),
            ("patch_loss", flat(pa.float32()), True),
            ("grid_h", pa.int16(), False),
            ("grid_w", pa.int16(), False),
        ],
        "actors": [
            ("stage", DICT, False),
            ("instance", pa.int16(), False),
            ("items", pa.int64(), False),
            ("bytes", pa.int64(), False),
            ("busy_s", pa.float64(), False),
            ("wait_in_s", pa.float64(), False),
            ("wait_out_s", pa.float64(), False),
            ("queue_len", pa.int32(), False),
            ("queue_cap", pa.int32(), False),
            ("queue_bytes", pa.int64(), False),
            ("utilization", pa.float32(), False),
            ("restarts", pa.int32(), False),
            ("lag", pa.int32(), False),
            ("device_s", pa.float64(), True),
        ],
        "events": [
            ("severity", DICT, False),
            ("kind", DICT, False),
            ("stage", DICT, True),
            ("message", pa.utf8(), False),
            ("fields", pa.utf8(), False),
        ],
        "evals": [
            ("task", DICT, False),
            ("split", DICT, False),
            ("metric", DICT, False),
            ("value", pa.float64(), False),
            ("n", pa.int64(), False),
            ("checkpoint", pa.utf8(), False),
            ("seconds", pa.float64(), False),
            ("ci_low", pa.float64(), True),
            ("ci_high", pa.float64(), True),
        ],
    }
    return COMMON + further[table]


TABLES = ["metrics", "masks", "actors", "events", "evals"]
# Versions of the schema, with the columns that each added at the end of a table. A run that an older version began has
# parts of both.
ADDED = {"1.0": [], "1.1": ["device_s"], "1.2": ["ci_low", "ci_high"]}
problems = []


def check(condition, message):
    if not condition:
        problems.append(message)


def check_schema(what, table, schema, pairs):
    get = lambda key: (pairs or {}).get(key.encode(), b"").decode()
    check(get("mlomae.schema.name") == f"mlomae.{table}", f"{what}: mlomae.schema.name is {get('mlomae.schema.name')!r}")
    version = get("mlomae.schema.version")
    check(version in ADDED, f"{what}: mlomae.schema.version is {version!r}")
    check(get("mlomae.run_id") != "", f"{what}: no mlomae.run_id")
    check(get("mlomae.program.version") != "", f"{what}: no mlomae.program.version")
    down, _, across = get("mlomae.patch_grid").partition("x")
    check(down.isdigit() and across.isdigit(), f"{what}: mlomae.patch_grid is {get('mlomae.patch_grid')!r}")
    patches = int(down) * int(across) if down.isdigit() and across.isdigit() else 0
    later = {column for other, added in ADDED.items() if other > version for column in added}
    expected = [column for column in columns(table, patches) if column[0] not in later]
    check(schema.names == [name for name, _, _ in expected], f"{what}: columns are {schema.names}")
    for name, kind, nullable in expected:
        if name in schema.names:
            field = schema.field(name)
            check(field.type == kind, f"{what}: {name} is {field.type}, expected {kind}")
            check(field.nullable == nullable, f"{what}: {name} nullable is {field.nullable}")


def plain(value):
    """A value that compares equal across readers."""
    if isinstance(value, (list, tuple)) or hasattr(value, "to_list"):
        return tuple(plain(v) for v in list(value))
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    if hasattr(value, "timestamp"):
        return round(value.timestamp() * 1e6)
    return value


def rows_of(frame):
    return sorted((tuple(plain(v) for v in row) for row in frame), key=repr)


def read_stream(path):
    """All whole batches of a stream that may be torn, with pyarrow; and the bytes up to the last of them."""
    data = open(path, "rb").read()
    source = io.BytesIO(data)
    batches, good = [], 0
    try:
        reader = pa.ipc.open_stream(source)
    except (pa.ArrowInvalid, OSError) as error:
        return None, [], 0, len(data), str(error)
    good = source.tell()
    try:
        while True:
            batches.append(reader.read_next_batch())
            good = source.tell()
    except StopIteration:
        return reader.schema, batches, good, len(data), None
    except (pa.ArrowInvalid, OSError) as error:
        return reader.schema, batches, good, len(data), str(error)


def check_sealed(run, table):
    pattern = os.path.join(run, "logs", table, "*.parquet")
    files = sorted(glob.glob(pattern))
    check(files, f"{table}: no parquet file")
    if not files:
        return 0, 0, 0, 0
    arrow = []
    for path in files:
        part = pq.read_table(path)
        what = os.path.relpath(path, run)
        check_schema(what, table, part.schema, part.schema.metadata)
        pairs = pq.ParquetFile(path).metadata.metadata
        check_schema(what + " (key-values)", table, part.schema, pairs)
        check(b"mlomae.stream" in pairs, f"{what}: no mlomae.stream")
        arrow.append(part)
    widest = max((part.schema for part in arrow), key=len)
    column = lambda part, name: part[name].to_pylist() if name in part.column_names else [None] * part.num_rows
    by_arrow = rows_of(row for part in arrow for row in zip(*(column(part, name) for name in widest.names)))
    frame = pl.concat([pl.read_parquet(path) for path in files], how="diagonal").select(widest.names)
    by_polars = rows_of(frame.iter_rows())
    connection = duckdb.connect()
    # As a number: handing out a time with zone would need the package pytz.
    names = ", ".join("epoch_us(ts)" if name == "ts" else name for name in frame.columns)
    by_duck = rows_of(connection.execute(f"SELECT {names} FROM read_parquet({files!r}, union_by_name = true)").fetchall())
    # What a user types.
    count = connection.execute(f"SELECT count(*) FROM '{pattern}'").fetchone()[0]
    check(count >= len(by_duck), f"{table}: DuckDB counts {count} rows by the glob, {len(by_duck)} by name")
    check(by_arrow == by_polars, f"{table}: pyarrow and polars disagree about sealed rows")
    check(by_arrow == by_duck, f"{table}: pyarrow and DuckDB disagree about sealed rows")
    return len(files), len(by_arrow), len(by_polars), len(by_duck)


def check_live(run, table):
    files = sorted(glob.glob(os.path.join(run, "logs", "live", f"{table}-*.arrows")))
    by_arrow = by_polars = torn = 0
    for path in files:
        what = os.path.relpath(path, run)
        schema, batches, good, total, damage = read_stream(path)
        check(schema is not None, f"{what}: pyarrow cannot open it: {damage}")
        if schema is None:
            continue
        torn += total - good
        check_schema(what, table, schema, schema.metadata)
        whole = pa.Table.from_batches(batches, schema)
        by_arrow += whole.num_rows
        # polars reads whole streams; a torn one is given to it up to its damage, as a repair does.
        data = open(path, "rb").read()[:good]
        if damage is None:
            frame = pl.read_ipc_stream(io.BytesIO(data))
        else:
            frame = pl.read_ipc_stream(io.BytesIO(data + b"\xff\xff\xff\xff\0\0\0\0"))
        by_polars += frame.height
        arrow_rows = rows_of(zip(*(c.to_pylist() for c in whole.columns)))
        check(arrow_rows == rows_of(frame.iter_rows()), f"{what}: pyarrow and polars disagree about live rows")
    return len(files), by_arrow, by_polars, torn


def check_exports(folder):
    for table in TABLES:
        part = pq.read_table(os.path.join(folder, f"{table}.parquet"))
        check_schema(f"{table}.parquet", table, part.schema, part.schema.metadata)
        whole = pa.ipc.open_file(os.path.join(folder, f"{table}.arrow")).read_all()
        check_schema(f"{table}.arrow", table, whole.schema, whole.schema.metadata)
        a, b = (rows_of(zip(*(c.to_pylist() for c in t.columns))) for t in (part, whole))
        check(a == b, f"{table}: the Parquet and Arrow exports disagree")
        polars = pl.read_ipc(os.path.join(folder, f"{table}.arrow"))
        check(rows_of(polars.iter_rows()) == b, f"{table}: polars and pyarrow disagree about the Arrow export")
        path = os.path.join(folder, f"{table}.csv")
        csv = duckdb.connect().execute(f"SELECT count(*), max(step), min(run_id) FROM read_csv('{path}', header = true, all_varchar = true)").fetchone()
        check(csv[0] == part.num_rows, f"{table}.csv: DuckDB counts {csv[0]} rows, the Parquet export has {part.num_rows}")
        frame = pl.read_csv(path, infer_schema=False)
        check(frame.height == part.num_rows, f"{table}.csv: polars counts {frame.height} rows")
        print(f"  exports of {table:8} {part.num_rows:6} rows in Parquet, Arrow and CSV")


def check_steps(run):
    """Metrics of one name and level: each step once, in sealed parts and streams together, no gap."""
    parts = {os.path.basename(p)[5:11] for p in glob.glob(os.path.join(run, "logs/metrics/*.parquet"))}
    tables = [pq.read_table(p) for p in sorted(glob.glob(os.path.join(run, "logs/metrics/*.parquet")))]
    for path in sorted(glob.glob(os.path.join(run, "logs/live/metrics-*.arrows"))):
        if path[-13:-7] not in parts:
            schema, batches, *_ = read_stream(path)
            if schema is not None:  # a run killed while it began a new part leaves a stream without its schema
                tables.append(pa.Table.from_batches(batches, schema))
    steps = [
        step
        for t in tables
        for step, name, level in zip(t["step"].to_pylist(), t["name"].to_pylist(), t["level"].to_pylist())
        if (name, level) == ("loss", "pretrain")
    ]
    if steps:
        check(steps == list(range(steps[0], steps[0] + len(steps))), f"metrics: steps have gaps or repeats: {len(steps)}")
    return steps


def main():
    args = [a for a in sys.argv[1:] if a != "--exports"]
    if not args or len(args) > 2:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    run = args[0]
    record = json.load(open(os.path.join(run, "run.json")))
    print(f"{record['id']}: {record['status']}; pyarrow {pa.__version__}, polars {pl.__version__}, duckdb {duckdb.__version__}")
    print(f"{'table':8} {'parts':>5} {'pyarrow':>8} {'polars':>8} {'duckdb':>8}   {'streams':>7} {'pyarrow':>8} {'polars':>8} {'torn bytes':>10}")
    for table in TABLES:
        parts, a, b, c = check_sealed(run, table)
        streams, d, e, torn = check_live(run, table)
        print(f"{table:8} {parts:5} {a:8} {b:8} {c:8}   {streams:7} {d:8} {e:8} {torn:10}")
        check(not (record["status"] == "finished" and streams), f"{table}: a finished run has live streams")
    steps = check_steps(run)
    if steps:
        print(f"steps of the pretraining loss: {steps[0]}..{steps[-1]}, {len(steps)} rows")
    if "--exports" in sys.argv:
        check_exports(args[1])
    for problem in problems:
        print(f"PROBLEM {problem}")
    print("ok" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
