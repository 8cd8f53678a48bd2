#!/usr/bin/env python3
"""Compiles the kernels with NVIDIA's compiler for several GPUs, none of which is needed, and checks what they use.

usage: nvrtc_check.py [--write]

The sources and options are those of dataflow/device/src/image.rs. No kernel may spill registers or have a stack frame,
and each has the registers that tests/gpu/registers.json says; --write rewrites the file. The compiler is found as the
pip package nvidia-cuda-nvrtc of this Python, or in the folder $NVRTC_FOLDER.
"""

import ctypes
import glob
import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ARCHITECTURES = ["sm_80", "sm_90a", "sm_100", "sm_120"]
DEVICE = Path(__file__).resolve().parents[2] / "dataflow/device"
TABLE = Path(__file__).with_name("registers.json")


def program():
    """The text that mlomae gives the compiler, and its options."""
    code = (DEVICE / "src/image.rs").read_text(encoding="utf-8")
    names = re.findall(r'^\s*\("([\w.]+)", include_str!', code, re.MULTILINE)
    missing = {path.name for path in (DEVICE / "kernels").iterdir()} - set(names)
    if missing:
        sys.exit(f"image.rs does not name {', '.join(sorted(missing))}")
    text = "".join(f'#line 1 "{name}"\n{(DEVICE / "kernels" / name).read_text(encoding="utf-8")}\n' for name in names)
    options = re.search(r"OPTIONS: [^=]*= &\[(.*?)\];", code, re.DOTALL).group(1)
    return text, re.findall(r'"(.*?)"', options)


def compiler():
    folders = [os.environ["NVRTC_FOLDER"]] if "NVRTC_FOLDER" in os.environ else []
    folders += [folder for path in sys.path for folder in glob.glob(f"{path}/nvidia/*/lib")]
    for folder in folders:
        libraries = glob.glob(f"{folder}/libnvrtc.so.*")
        if libraries:
            # The compiler opens this one by name, and fails without it.
            for builtins in glob.glob(f"{folder}/libnvrtc-builtins.so.*"):
                ctypes.CDLL(builtins, ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(libraries[0])
    sys.exit("no libnvrtc: pip install nvidia-cuda-nvrtc")


def compile_for(arch):
    """The compiler's log, its status, and the seconds it took."""
    nvrtc = compiler()
    text, options = program()
    options = [*options, f"--gpu-architecture={arch}", "--ptxas-options=-v"]
    handle = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(handle), text.encode(), b"mlomae.cu", 0, None, None):
        sys.exit("nvrtcCreateProgram failed")
    start = time.monotonic()
    arguments = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    status = nvrtc.nvrtcCompileProgram(handle, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(handle, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(handle, log)
    return log.value.decode(), status, time.monotonic() - start


def kernels_of(log):
    """Registers of each kernel, and what is wrong with any function."""
    registers, faults, kernel, function = {}, [], None, None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = match.group(1)
        elif match := re.search(r"Function properties for (\w+)", line):
            function = match.group(1)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if any(int(count) for count in match.groups()):
                faults.append(f"{function}: {match.group(0)}")
        elif match := re.search(r"Used (\d+) registers", line):
            registers[kernel] = int(match.group(1))
        elif "warning" in line or "error" in line:
            faults.append(line)
    return registers, faults


def row(name, counts):
    return f'  "{name}": {json.dumps(counts)}'


def main():
    write = sys.argv[1:] == ["--write"]
    if sys.argv[1:] and not write:
        sys.exit(__doc__)
    pinned = json.loads(TABLE.read_text())["kernels"] if not write else {}
    num_faults, found = 0, {}
    with ProcessPoolExecutor(max_workers=2) as pool:
        for i, (arch, (log, status, seconds)) in enumerate(zip(ARCHITECTURES, pool.map(compile_for, ARCHITECTURES))):
            if status:
                sys.exit(f"{arch}: the compiler refuses the kernels:\n{log}")
            registers, faults = kernels_of(log)
            for kernel, count in registers.items():
                found.setdefault(kernel, [None] * len(ARCHITECTURES))[i] = count
            for kernel in sorted(registers.keys() | pinned.keys()) if not write else ():
                was = pinned.get(kernel, [None] * len(ARCHITECTURES))[i]
                if registers.get(kernel) != was:
                    faults.append(f"{kernel}: {registers.get(kernel)} registers, pinned are {was}")
            for fault in faults:
                print(f"{arch}: {fault}")
            num_faults += len(faults)
            most = max(registers, key=registers.get)
            print(f"{arch}: {len(registers)} kernels in {seconds:.1f} s, at most {registers[most]} registers ({most})")
    if write:
        rows = ",\n".join(row(name, found[name]) for name in sorted(found))
        TABLE.write_text(f'{{\n "architectures": {json.dumps(ARCHITECTURES)},\n "kernels": {{\n{rows}\n }}\n}}\n')
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
