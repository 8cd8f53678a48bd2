"""mlomae and PyTorch in turns on one GPU: `mlomae bench` beside ../peer/torch_loop.py, so that all see the same card.

Peers are started once and compile side by side; memory that they do not use is given back while others are measured. A
turn is one `mlomae bench` for each precision (with --graphs two, with CUDA graphs and without), then as many iterations of each peer. Prints one JSON object at the end,
or at SIGTERM with what there is by then; a program or peer that fails is told of and left out.

  turns.py --mlomae PATH --python PYTHON --preset base --ours bf16 --peer "NAME=OPTIONS of torch_loop.py" --seconds N
"""

import argparse
import json
import os
import pathlib
import queue
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time

# A peer's turn has no further iterations after this time.
SLOW_SECONDS = 4
# For a peer's last words, when time is up.
GRACE_SECONDS = 3
LOOP = pathlib.Path(__file__).resolve().parent.parent / "peer" / "torch_loop.py"


class Failed(Exception):
    """A program that did not do what was asked of it."""


class Peer:
    """A torch_loop.py that waits for its turn."""

    def __init__(self, name, options, args, log):
        self.name, self.failure, self.hello, self.goodbye = name, None, {}, {}
        self.first_ms, self.turns, self.laps = None, [], []
        command = [args.python, str(LOOP), "--serve", "--device", args.device, "--preset", args.preset, *options]
        command += ["--batch", str(args.batch)] if args.batch else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def say(self, word):
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failed(f"has ended: {error}") from None

    def answer(self, until):
        try:
            line = self.answers.get(timeout=max(GRACE_SECONDS, until - time.monotonic()))
        except queue.Empty:
            raise Failed("did not answer in time") from None
        if line is None:
            raise Failed("ended by itself; its own words are in peer_log")
        try:
            return json.loads(line)
        except ValueError:
            raise Failed(f"is not understood: {line.strip()[:200]}") from None

    def ask(self, word, until):
        self.say(word)
        return self.answer(until)

    def turn(self, rounds, until):
        """One iteration that takes memory again, then the measured ones; fewer of a slow peer, but two."""
        self.ask("step", until)
        laps, enough = [], time.monotonic() + SLOW_SECONDS
        while len(laps) < rounds and (len(laps) < 2 or time.monotonic() < enough):
            laps.append(self.ask("step", until)["ms"])
        self.ask("rest", until)
        self.laps += laps
        self.turns.append(statistics.median(laps))

    def report(self):
        found = {**self.hello, **self.goodbye, "ms_first": self.first_ms, "turns_ms": self.turns}
        if self.laps:
            found |= {"ms_outer": statistics.median(self.laps), "ms_outer_range": [min(self.laps), max(self.laps)]}
        return found | ({"failure": self.failure} if self.failure else {})


class Sampler:
    """The memory of the device in use, by nvidia-smi, while it is open."""

    def __enter__(self):
        self.samples = []
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self.process = None
            return self
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        time.sleep(0.5)
        return self

    def _read(self):
        for line in self.process.stdout:
            word = line.split(",")[0].strip()
            if word.isdigit():
                self.samples.append(int(word) << 20)

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.thread.join(1)

    def growth(self):
        return max(self.samples) - self.samples[0] if self.samples else None


class Ours:
    """`mlomae bench` in one precision, with CUDA graphs on, off or, with `graphs` None, as it chooses itself."""

    def __init__(self, precision, args, graphs=None):
        self.precision, self.args, self.failure, self.graphs = precision, args, None, graphs
        self.turns, self.report_of_last, self.sampled_bytes = [], {}, None

    def bench(self, rounds, until):
        args = self.args
        command = [args.mlomae, "bench", "--preset", args.preset, "--engine", args.engine, "--no-pipeline", "--json"]
        command += ["--set", f"compute.precision={self.precision}", "--rounds", str(rounds)]
        command += ["--batch", str(args.batch)] if args.batch else []
        limit = max(1, until - time.monotonic())
        try:
            graphs = {} if self.graphs is None else {"MLOMAE_CUDA_GRAPHS": str(int(self.graphs))}
            environment = {**os.environ, **graphs}
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            raise Failed("was not done in time") from None
        except OSError as error:
            raise Failed(str(error)) from None
        if done.returncode:
            raise Failed(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        try:
            self.report_of_last = json.loads(done.stdout)
            return self.report_of_last["ms_outer"]
        except (ValueError, KeyError):
            raise Failed(f"is not understood: {done.stdout[:200]}") from None

    def warm_up(self, until):
        """Fills the cache of kernel images; its memory is sampled."""
        with Sampler() as sampler:
            self.bench(1, until)
        self.sampled_bytes = sampler.growth()

    def turn(self, rounds, until):
        self.turns.append(self.bench(rounds, until))

    def device_bytes(self):
        return self.report_of_last.get("device_peak_bytes") or self.sampled_bytes

    def report(self):
        found = {"precision": self.precision, "turns_ms": self.turns}
        found |= {} if self.graphs is None else {"graphs": self.graphs}
        found |= {"device_bytes": self.device_bytes(), "sampled_bytes": self.sampled_bytes, "last": self.report_of_last}
        if self.turns:
            found["ms_outer"] = statistics.median(self.turns)
        return found | ({"failure": self.failure} if self.failure else {})


def together(ours, peers):
    """By how much ours is faster than each peer, turn for turn, and its memory as a share of the peer's."""
    pairs = []
    for our in ours:
        for peer in peers:
            ratios = [theirs / own for own, theirs in zip(our.turns, peer.turns)]
            if ratios:
                memory, theirs = our.device_bytes(), peer.goodbye.get("peak_bytes")
                pairs.append({
                    "ours": our.precision,
                    "peer": peer.name,
                    "times_as_fast": statistics.median(ratios),
                    "range": [min(ratios), max(ratios)],
                    "memory_share": memory / theirs if memory and theirs else None,
                })
    return pairs


def of_graphs(ours):
    """By how much graphs make each precision faster, turn for turn."""
    found = []
    for on in (our for our in ours if our.graphs):
        off = next(our for our in ours if our.graphs is False and our.precision == on.precision)
        ratios = [slow / fast for fast, slow in zip(on.turns, off.turns)]
        if ratios:
            memory, other = on.device_bytes(), off.device_bytes()
            found.append({
                "precision": on.precision,
                "times_as_fast": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "memory_share": memory / other if memory and other else None,
            })
    return found


def without_failures(members, do):
    """Does it for all that have not failed."""
    for member in members:
        if not member.failure:
            try:
                do(member)
            except Failed as failure:
                member.failure = str(failure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlomae", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--engine", default="cuda")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ours", action="append", default=[], metavar="PRECISION")
    parser.add_argument("--graphs", action="store_true", help="each precision with CUDA graphs and without")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=OPTIONS")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--peer-log", default="/dev/null")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ways = (True, False) if args.graphs else (None,)
    ours, peers = [Ours(precision, args, graphs) for precision in args.ours for graphs in ways], []
    began = time.monotonic()
    num_turns = 0
    try:
        with open(args.peer_log, "a") as log:
            for peer in args.peer:
                name, _, options = peer.partition("=")
                peers.append(Peer(name, shlex.split(options), args, log))
            # Ours is warmed while the peers import torch; they take memory with their first iterations only.
            without_failures(ours, lambda our: our.warm_up(until))
            without_failures(peers, lambda peer: peer.hello.update(peer.answer(until)))
            without_failures(peers, lambda peer: peer.say("step"))
            without_failures(peers, lambda peer: setattr(peer, "first_ms", peer.answer(until)["ms"]))
            without_failures(peers, lambda peer: peer.ask("rest", until))
            warm_up_s, longest = time.monotonic() - began, 0
            while num_turns < args.turns and time.monotonic() + 1.2 * longest < until:
                begin = time.monotonic()
                without_failures(ours, lambda our: our.turn(args.rounds, until))
                without_failures(peers, lambda peer: peer.turn(args.rounds, until))
                num_turns, longest = num_turns + 1, max(longest, time.monotonic() - begin)
            without_failures(peers, lambda peer: peer.goodbye.update(peer.ask("end", until)))
    finally:
        for peer in peers:
            peer.process.kill()
        found = {"preset": args.preset, "num_turns": num_turns, "rounds_a_turn": args.rounds}
        found |= {"seconds": time.monotonic() - began, "ours": [our.report() for our in ours]}
        if any(peer.failure for peer in peers):
            found["peer_log"] = pathlib.Path(args.peer_log).read_text(errors="replace")[-2000:]
        found |= {"peers": {peer.name: peer.report() for peer in peers}, "pairs": together(ours, peers)}
        found |= {"graphs": of_graphs(ours)} if args.graphs else {}
        print(json.dumps(found), flush=True)
    failed = [m for m in ours + peers if m.failure]
    sys.exit(1 if failed or not num_turns else 0)


if __name__ == "__main__":
    main()
