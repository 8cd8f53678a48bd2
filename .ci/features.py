#!/usr/bin/env python3
"""Checks that every selection of packages builds the third-party crates with the same features.

Where it does not, Cargo builds arrow, parquet and others once more for that selection. The remedy is an entry in
.cargo/features/Cargo.toml. Prints the crates that differ and exits with 1 if there are any.
"""

import json
import subprocess
import sys


def features(*selection):
    command = ["cargo", "tree", "--locked", "--prefix", "none", "--no-dedupe", "--format", "{p} [{f}]", *selection]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    crates = (line.removesuffix(" (*)").replace(" (proc-macro)", "") for line in lines if line.strip())
    return {crate for crate in crates if not crate.startswith("mlomae-")}


def main():
    metadata = subprocess.run(
        ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"], check=True, capture_output=True, text=True
    )
    packages = sorted(package["name"] for package in json.loads(metadata.stdout)["packages"])
    everything = features("--workspace", "--edges", "normal,build,dev")
    # `cargo test` builds what dev-dependencies ask for, `cargo run` does not.
    selections = [("--workspace", "--edges", "normal,build")]
    for package in packages:
        selections += [("-p", package, "--edges", edges) for edges in ("normal,build", "normal,build,dev")]
    num_different = 0
    for selection in selections:
        # The crate of features alone is never built by anyone.
        if "mlomae-features" in selection:
            continue
        for crate in sorted(features(*selection) - everything):
            num_different += 1
            name, version, _ = crate.split(" ", 2)
            wanted = [other for other in everything if other.startswith(f"{name} {version} ")]
            print(f"{' '.join(selection)}: {crate}, the whole workspace has {', '.join(sorted(wanted))}")
    print(f"{len(selections)} selections of packages, {num_different} crates with features of their own")
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
