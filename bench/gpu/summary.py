"""Puts together what the stages of run.sh left: a JSON file a stage, and summary.json with all of them and the targets.

  summary.py --raw DIR --out DIR [--quiet]

DIR has, for each command STAGE.NAME, its output (.out), what it said on stderr (.err) and how it ended (.run), and for
each stage how that ended (.stage) or why it was not run (.skip). A target is met, not met, or not known (null).
"""

import argparse
import csv
import json
import operator
import pathlib
import statistics

TAIL_CHARS = 1500
# What `timeout` ends with, a command killed by it, and one that was at work when its stage ended.
TIMED_OUT = (124, 137, None)


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""


def ended(path):
    """The lines `key value` of a .run or .stage file."""
    lines = dict(line.split(" ", 1) for line in read(path).splitlines() if " " in line)
    return {key: int(value) if key != "command" else value for key, value in lines.items()}


def printed(text):
    """JSON if it is that, the last JSON line if only that is, else the end of the text."""
    text = text.strip()
    for candidate in (text, text.rsplit("\n", 1)[-1]):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, (dict, list)):
            return {"result": value}
    return {"text": text[-TAIL_CHARS:]} if text else {}


def command(raw, name):
    found = {**(ended(raw / f"{name}.run") or {"rc": None}), **printed(read(raw / f"{name}.out"))}
    complaint = read(raw / f"{name}.err").strip()
    return found | ({"stderr": complaint[-TAIL_CHARS:]} if complaint else {})


def samples(path):
    """Share of the time at which kernels ran, from the first sample at work to the last, and memory, by nvidia-smi."""
    rows = []
    for row in csv.reader(read(path).splitlines()):
        words = [word.strip() for word in row]
        if len(words) == 2 and all(word.isdigit() for word in words):
            rows.append((int(words[0]), int(words[1])))
    at_work = [i for i, (busy, _) in enumerate(rows) if busy >= 50]
    if len(at_work) < 3:
        return None
    # The first and the last are partly of what was before and after.
    stretch = rows[at_work[0] + 1 : at_work[-1]]
    busy = statistics.mean(b for b, _ in stretch) if stretch else None
    return {"busy_percent": busy, "num_samples": len(stretch), "memory_bytes": max(m for _, m in rows) << 20}


def stage(raw, name):
    """Everything that is known of a stage."""
    end, skipped = ended(raw / f"{name}.stage"), read(raw / f"{name}.skip").strip()
    # What was at work when the stage's time was up has no .run file.
    files = {path.stem for kind in ("run", "out") for path in raw.glob(f"{name}.*.{kind}")}
    commands = {file[len(name) + 1 :]: command(raw, file) for file in sorted(files)}
    codes = [c["rc"] for c in commands.values()]
    if skipped:
        status = "skipped"
    elif end.get("rc", 0) in TIMED_OUT or any(code in TIMED_OUT for code in codes):
        status = "timed out"
    else:
        status = "ok" if commands and not any(codes) and not end.get("rc") else "failed"
    found = {"stage": name, "status": status, "seconds": end.get("seconds"), "limit_s": end.get("limit_s")}
    found |= {"skipped": skipped} if skipped else {}
    found["commands"] = commands
    taken = {path.name[len(name) + 9 : -4]: samples(path) for path in sorted(raw.glob(f"{name}.samples-*.csv"))}
    found |= {"samples": {k.lstrip("-"): v for k, v in taken.items()}} if taken else {}
    return found | EXTRACTS.get(name, lambda _: {})(found)


def results(found):
    return {name: c["result"] for name, c in found["commands"].items() if isinstance(c.get("result"), dict)}


# Two files at three precisions.
NUM_GOLDEN = 6


def golden(found):
    """How many quantities are within their limits, by file and precision."""
    counts = {}
    for name, result in results(found).items():
        checks = result.get("checks", [])
        worst = max(checks, key=lambda c: c["error"] / c["limit"] if c["limit"] else c["error"], default=None)
        counts[name] = {"ok": sum(c["ok"] for c in checks), "of": len(checks), "worst": worst}
    return {"golden": counts} if counts else {}


# Runs whose checkpoints must have the same bits.
SAME_BITS = [
    ("f32-serial", "f32-threaded"),
    ("bf16-serial", "bf16-threaded"),
    ("bf16-serial", "bf16-narrow"),
    ("bf16-lag1-a", "bf16-lag1-b"),
]


def bits(found):
    sums = {name[:-5]: c["text"] for name, c in found["commands"].items() if name.endswith("-sums") and c.get("text")}
    pairs = [pair for pair in SAME_BITS if all(run in sums for run in pair)]
    return {"same_bits": [{"runs": (a, b), "same": sums[a] == sums[b]} for a, b in pairs]} if pairs else {}


def selftest(found):
    """How many operations are within their limits, and which are not."""
    result = results(found).get("selftest", {})
    operations = result.get("operations")
    if operations is None:
        return {}
    wrong = [f"{o['operation']} ({o['precision']})" for o in operations if not o["ok"]]
    counts = {"ok": len(operations) - len(wrong), "of": len(operations), "wrong": wrong}
    return {"selftest": counts | {"problem": result.get("problem")}}


def graphs(found):
    """By how much CUDA graphs make an outer iteration faster, by preset."""
    gains = {name: result.get("graphs") for name, result in results(found).items() if result.get("graphs")}
    return {"graphs": gains} if gains else {}


# Products that are listed of each preset and precision; all are in the command's result.
NUM_PRODUCTS = 8


def products(found):
    """The speed of an outer iteration's products, and of those that take the most time."""
    keys = ("peak_tflops", "ms_outer", "gflop_outer", "tflops", "percent_of_peak")
    runs = {name: result for name, result in results(found).items() if result.get("products")}
    return {"products": {
        name: {key: result.get(key) for key in keys} | {"most_time": result["products"][:NUM_PRODUCTS]}
        for name, result in runs.items()
    }} if runs else {}


EXTRACTS = {"selftest": selftest, "golden": golden, "bits": bits, "graphs": graphs, "products": products}


def dig(value, *keys):
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def pair(stages, name, ours, peer):
    pairs = dig(stages, name, "commands", "turns", "result", "pairs") or []
    return next((p for p in pairs if (p["ours"], p["peer"]) == (ours, peer)), {})


def share_of_peak(stages):
    """Arithmetic of an iteration of base in bf16 as a share of the product of 8192 x 8192, in percent."""
    ceiling = dig(stages, "ceilings", "commands", "ceilings", "result", "bf16_tflops")
    for ours in dig(stages, "base", "commands", "turns", "result", "ours") or []:
        gflop = dig(ours, "last", "gflop_outer")
        if ours.get("precision") == "bf16" and ours.get("ms_outer") and gflop and ceiling:
            return 100 * gflop / ours["ms_outer"] / ceiling
    return None


def num_golden(stages):
    """Files and precisions of which every quantity is within its limit."""
    counts = dig(stages, "golden", "golden")
    return None if counts is None else sum(0 < c["of"] == c["ok"] for c in counts.values())


def num_same(stages):
    same = dig(stages, "bits", "same_bits")
    return None if same is None else sum(s["same"] for s in same)


def num_right(stages):
    """Whether every operation is within its limit."""
    counts = dig(stages, "selftest", "selftest")
    return None if counts is None else int(0 < counts["of"] == counts["ok"] and not counts["problem"])


def of_graphs(stages):
    gains = dig(stages, "graphs", "graphs", "small") or [{}]
    return gains[0].get("times_as_fast")


def targets(stages):
    """What is to be reached on one H100 or H200, and what was found; null where it was not measured."""
    strict = pair(stages, "base", "bf16", "strict-bf16")
    rows = [
        ("every operation within its limit (1: yes)", ">=", 1, num_right(stages)),
        ("golden files, by precision, with all quantities in limits", ">=", NUM_GOLDEN, num_golden(stages)),
        ("pairs of runs with the same bits", ">=", len(SAME_BITS), num_same(stages)),
        ("base bf16, times as fast as the strict compiled peer", ">=", 1.5, strict.get("times_as_fast")),
        ("base bf16, times as fast as the published loop in f32", ">=", 5,
         pair(stages, "base", "bf16", "published-f32").get("times_as_fast")),
        ("base bf16, percent of the measured bf16 peak", ">=", 45, share_of_peak(stages)),
        ("base bf16, memory as a share of the strict peer's", "<=", 1, strict.get("memory_share")),
        ("base tf32, times as fast as the strict compiled peer", ">=", 1,
         pair(stages, "base-tf32", "tf32", "strict-tf32").get("times_as_fast")),
        ("base f32, times as fast as the strict compiled peer", ">=", 1,
         pair(stages, "base-f32", "f32", "strict-f32").get("times_as_fast")),
        ("small bf16, times as fast as the strict compiled peer", ">=", 3,
         pair(stages, "small", "bf16", "strict-bf16").get("times_as_fast")),
        ("small bf16, times as fast with CUDA graphs as without", ">=", 1, of_graphs(stages)),
        ("GPU busy at lag 1, percent", ">=", 95, dig(stages, "timeline", "samples", "lag1", "busy_percent")),
        ("overlap of the levels at lag 1, share of the time", ">", 0,
         dig(stages, "timeline", "commands", "lag1", "result", "overlap")),
    ]
    holds = {">=": operator.ge, "<=": operator.le, ">": operator.gt}
    return [
        {
            "target": what,
            "wanted": f"{sign} {wanted}",
            "found": found,
            "met": None if found is None else holds[sign](found, wanted),
        }
        for what, sign, wanted, found in rows
    ]


def table(summary):
    lines = [f"{summary['card'] or 'unknown card'}"]
    lines += [f"  {s['stage']:10} {s['status']:9} {s['seconds'] or 0:4} s" for s in summary["stages"].values()]
    words = {True: "met", False: "NOT MET", None: "not known"}
    for row in summary["targets"]:
        found = "-" if row["found"] is None else f"{row['found']:.3g}"
        lines.append(f"  {row['target']:60} {row['wanted']:>7} {found:>8}  {words[row['met']]}")
    return "\n".join(lines)


def write(path, value):
    """Whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    beside.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    ends = sorted(args.raw.glob("*.stage"), key=lambda path: path.stat().st_mtime_ns)
    stages = {}
    for end in ends:
        found = stages[end.stem] = stage(args.raw, end.stem)
        write(args.out / f"{end.stem}.json", found)
    card = (dig(stages, "facts", "commands", "card", "text") or "").splitlines()
    name = card[-1].split(",")[0].strip() if card else None
    name = name or dig(stages, "ceilings", "commands", "ceilings", "result", "device_name")
    summary = {"card": name, "targets": targets(stages), "stages": stages}
    write(args.out / "summary.json", summary)
    if not args.quiet:
        print(table(summary))


if __name__ == "__main__":
    main()
