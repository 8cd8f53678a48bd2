"""Runs run.sh with a GPU, a program and a PyTorch that are shell scripts: python3 bench/gpu/test_run.py

Needs no GPU and no torch; some ten seconds. Sees that plans fit their limits, that a failing or slow stage stops
nothing, and that what comes out is complete.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
RUN = HERE / "run.sh"
CALL_SECONDS = 420

NVIDIA_SMI = """#!/bin/bash
case "$*" in
-L) echo "GPU 0: Fake H1 (UUID: GPU-0)" ;;
*name,driver*) printf 'name, driver_version\\nFake H1, 999.9\\n' ;;
*utilization*) printf '0, 10\\n60, 900\\n98, 1000\\n96, 1000\\n70, 900\\n0, 10\\n'; exec sleep 60 ;;
*) printf '100\\n'; sleep 0.1; printf '300\\n'; exec sleep 60 ;;
esac
"""
# What ours prints. FAKE_BITS_DIFFER makes every run its own; FAKE_SLOW_VERIFY never ends, in a process of its own.
MLOMAE = """#!/bin/bash
command=$1
[ "$command" != "${FAKE_BROKEN-}" ] || { echo "error: it is broken" >&2; exit 70; }
case $command in
--version) echo "mlomae 0.0.0" ;;
gpu)
    case $2 in
    selftest)
        [ -z "${FAKE_WRONG-}" ] || wrong=', {"operation": "gelu", "precision": "bf16", "error": null, "limit": 1e-2, "ok": false}'
        echo '{"ok": true, "problem": null, "operations": [{"operation": "gelu", "precision": "f32", "error": 1e-8,
            "limit": 1e-7, "ok": true}'"${wrong-}"']}'
        [ -z "${FAKE_WRONG-}" ] || exit 1 ;;
    products) echo '{"peak_tflops": 800.0, "ms_outer": 50.0, "gflop_outer": 20000.0, "tflops": 400.0,
        "percent_of_peak": 50.0, "products": [{"m": 1, "n": 2, "k": 3, "us": 4.0, "tflops": 400.0}]}' ;;
    *) echo '{"device": "Fake H1"}' ;;
    esac ;;
verify)
    [ -z "${FAKE_SLOW_VERIFY-}" ] || { sleep 60 & echo $! >>"$FAKE_SLOW_VERIFY"; wait; }
    echo '{"checks": [{"quantity": "a", "error": 1e-7, "limit": 1e-5, "ok": true},
        {"quantity": "b", "error": 0.0, "limit": 0.0, "ok": true}]}' ;;
train)
    while [ "$1" != --run-dir ]; do shift; done
    mkdir -p "$2/checkpoints/step-1"
    echo "weights ${FAKE_BITS_DIFFER:+$2}" >"$2/checkpoints/step-1/model.safetensors" ;;
timeline) echo '{"overlap": 0.25, "outer_per_s": 5.0}' ;;
bench)
    ms=100.0
    [ "${MLOMAE_CUDA_GRAPHS-}" != 0 ] || ms=125.0
    echo '{"ms_outer": '$ms', "gflop_outer": 40000.0, "peak_bytes": 5, "device_peak_bytes": 1000}' ;;
esac
"""
# Peers, ceilings and versions.
PYTHON = """#!/bin/bash
case "$*" in
*--serve*)
    echo '{"about": "fake", "torch": "0"}'
    while read -r word; do
        case $word in
        step) echo '{"ms": 200.0}' ;;
        rest) echo '{"rests": true}' ;;
        end) echo '{"peak_bytes": 2000}'; exit ;;
        esac
    done ;;
*ceilings.py*) echo '{"device_name": "Fake H1", "bf16_tflops": 800.0}' ;;
*torch*) echo '{"torch": "0"}' ;;
esac
"""


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.bin, self.out = self.folder / "bin", self.folder / "out"
        self.bin.mkdir()
        self.env = {key: os.environ[key] for key in os.environ.keys() - {"OUT", "MLOMAE", "PYTHON", "PEER_PYTHON"}}
        self.env |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": sys.executable, "TMPDIR": str(self.folder)}

    def fake(self, **programs):
        for name, text in programs.items():
            path = self.bin / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o755)

    def fake_all(self):
        self.fake(nvidia_smi=NVIDIA_SMI, mlomae=MLOMAE, peer_python=PYTHON)
        self.env |= {"MLOMAE": str(self.bin / "mlomae"), "PEER_PYTHON": str(self.bin / "peer-python")}

    def run_sh(self, *options, **env):
        command = ["bash", str(RUN), "--out", str(self.out), *options]
        return subprocess.run(command, capture_output=True, text=True, env=self.env | env, timeout=100, check=False)

    def summary(self):
        return json.loads((self.out / "summary.json").read_text())

    @staticmethod
    def is_alive(process):
        try:
            return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def met(self):
        return {row["target"]: row["met"] for row in self.summary()["targets"]}

    def test_plans_fit_a_call(self):
        for part in ("first", "second", "third"):
            done = self.run_sh("--dry-run", part)
            self.assertEqual(done.returncode, 0, done.stderr)
            planned = int(re.search(r"stages: (\d+) s at most", done.stdout)[1])
            self.assertLessEqual(planned, CALL_SECONDS - 5)
            word = {"first": "--engine cuda", "second": "compute-sanitizer", "third": "gpu products"}[part]
            self.assertIn(word, done.stdout)
            stages = re.findall(r"^([\w-]+), at most", done.stdout, re.MULTILINE)
            self.assertEqual(stages[0], {"first": "selftest", "second": "sanitizer", "third": "graphs"}[part])
        self.assertFalse(self.out.exists())

    def test_without_a_gpu_it_says_so(self):
        self.fake(nvidia_smi="#!/bin/bash\nexit 9\n")
        for options, status in (([], 3), (["--allow-no-gpu"], 0)):
            done = self.run_sh(*options, "first")
            self.assertEqual(done.returncode, status)
            self.assertIn("no NVIDIA GPU", done.stderr)

    def test_without_a_program_it_says_how_to_get_one(self):
        self.fake(nvidia_smi=NVIDIA_SMI)
        done = self.run_sh("facts", MLOMAE=str(self.folder / "nothing"))
        self.assertEqual(done.returncode, 66)
        self.assertIn("cargo build --release", done.stderr)

    def test_wrong_arguments(self):
        for options in ([], ["nosuch"], ["--limit", "soon", "first"], ["--limit"]):
            self.assertEqual(self.run_sh(*options).returncode, 2, options)

    def test_all_stages(self):
        self.fake_all()
        self.fake(compute_sanitizer="#!/bin/bash\nexit 0\n")
        done = self.run_sh("--limit", "2000", "all")
        self.assertEqual(done.returncode, 0, done.stderr)
        summary = self.summary()
        self.assertEqual(summary["card"], "Fake H1")
        self.assertEqual({s["status"] for s in summary["stages"].values()}, {"ok"}, done.stdout)
        self.assertEqual(len(summary["stages"]), 13)
        for name, stage in summary["stages"].items():
            self.assertEqual(json.loads((self.out / f"{name}.json").read_text()), stage)
        self.assertTrue((self.out / "raw.tar.gz").stat().st_size)
        found = {row["target"]: row["found"] for row in summary["targets"]}
        self.assertEqual(found["base bf16, times as fast as the strict compiled peer"], 2)
        self.assertEqual(found["base bf16, percent of the measured bf16 peak"], 50)
        self.assertEqual(found["base bf16, memory as a share of the strict peer's"], 0.5)
        self.assertEqual(found["GPU busy at lag 1, percent"], 97)
        self.assertFalse(self.met()["small bf16, times as fast as the strict compiled peer"])
        self.assertEqual(sum(met is True for met in self.met().values()), 11, found)
        self.assertEqual(found["small bf16, times as fast with CUDA graphs as without"], 1.25)
        self.assertEqual(summary["stages"]["selftest"]["selftest"]["ok"], 1)
        products = summary["stages"]["products"]["products"]
        self.assertEqual(set(products), {"base-bf16", "base-tf32", "small-bf16", "small-tf32"})
        self.assertEqual(products["base-bf16"]["percent_of_peak"], 50)
        self.assertEqual(products["base-bf16"]["most_time"][0]["us"], 4)
        self.assertEqual(list(self.folder.glob("tmp*")), [])

    def test_a_failing_program_stops_nothing(self):
        self.fake_all()
        done = self.run_sh("--limit", "2000", "golden", "small", "timeline", FAKE_BROKEN="bench")
        self.assertEqual(done.returncode, 0, done.stderr)
        stages = self.summary()["stages"]
        self.assertEqual([stages[s]["status"] for s in ("golden", "small", "timeline")], ["ok", "failed", "ok"])
        turns = stages["small"]["commands"]["turns"]["result"]
        self.assertIn("it is broken", turns["ours"][0]["failure"])
        self.assertEqual(turns["peers"]["published-f32"]["ms_outer"], 200)
        self.assertIsNone(self.met()["small bf16, times as fast as the strict compiled peer"])

    def test_a_wrong_operation_is_named_and_stops_nothing(self):
        self.fake_all()
        self.run_sh("selftest", "golden", FAKE_WRONG="1")
        stages = self.summary()["stages"]
        self.assertEqual([stages[s]["status"] for s in ("selftest", "golden")], ["failed", "ok"])
        self.assertEqual(stages["selftest"]["selftest"]["wrong"], ["gelu (bf16)"])
        self.assertIs(self.met()["every operation within its limit (1: yes)"], False)

    def test_a_stripped_copy_is_run_where_there_is_strip(self):
        self.fake_all()
        # As strip does it with a program: here the copy says another version.
        self.fake(strip="#!/bin/bash\nsed s/0.0.0/stripped/ \"$3\" >\"$2\" && chmod 755 \"$2\"\n")
        self.run_sh("facts")
        self.assertEqual(self.summary()["stages"]["facts"]["commands"]["version"]["text"], "mlomae stripped")
        self.assertIn("mlomae 0.0.0", (self.bin / "mlomae").read_text())
        self.fake(strip="#!/bin/bash\necho nothing >\"$2\"; exit 1\n")
        self.run_sh("facts")
        self.assertEqual(self.summary()["stages"]["facts"]["commands"]["version"]["text"], "mlomae 0.0.0")

    def test_bits_that_differ_are_seen(self):
        self.fake_all()
        self.run_sh("bits", FAKE_BITS_DIFFER="1")
        self.assertIs(self.met()["pairs of runs with the same bits"], False)

    def test_a_slow_stage_is_ended_with_all_its_processes(self):
        self.fake_all()
        processes = self.folder / "processes"
        begin = time.monotonic()
        # The first call's remaining time is that of one stage; the second stage has none left.
        done = self.run_sh("--limit", "11", "golden", "bits", FAKE_SLOW_VERIFY=str(processes))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(time.monotonic() - begin, 20)
        stages = self.summary()["stages"]
        self.assertEqual(stages["golden"]["status"], "timed out")
        self.assertEqual(stages["bits"]["status"], "skipped")
        self.assertIn("no time was left", stages["bits"]["skipped"])
        for process in processes.read_text().split():
            self.assertFalse(self.is_alive(process))


if __name__ == "__main__":
    unittest.main()
