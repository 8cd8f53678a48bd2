//! Builds the libraries of the emulated GPU with g++, once for each state of their sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sources of each library, below `tests/gpu/fake`; libcuda has the kernels too.
const LIBRARIES: [(&str, &[&str], &[&str]); 3] = [
    (
        "libcuda.so",
        &["libcuda.so.1"],
        &[
            "fiber.cpp",
            "shared.cpp",
            "block.cpp",
            "warp.cpp",
            "settings.cpp",
            "memory.cpp",
            "order.cpp",
            "stream.cpp",
            "driver.cpp",
            "driver_memory.cpp",
            "driver_stream.cpp",
        ],
    ),
    ("libcublasLt.so", &["libcublasLt.so.13"], &["cublaslt.cpp", "product.cpp"]),
    ("libnvrtc.so", &["libnvrtc.so.13"], &["nvrtc.cpp"]),
];

const FLAGS: [&str; 7] =
    ["-std=c++17", "-O2", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-strict-aliasing", "-g1"];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu/fake")
}

/// The flags of this processor: with fused multiply-adds, which compilers for GPUs use too, and with the faster way to
/// thread-local variables, as which shared memory is declared.
fn machine_flags() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("bmi2") {
        return &["-march=x86-64-v3", "-mtls-dialect=gnu2"];
    }
    &[]
}

/// FNV-1a, as in `tests/gpu/fake/nvrtc.cpp`.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let bytes = parts.into_iter().flatten();
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Runs a command to its end; its output, or the first lines of what it complains of.
fn run(command: &mut Command) -> Result<String, String> {
    let output =
        command.output().map_err(|error| format!("{} cannot be run: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = complaint.lines().filter(|line| line.contains("error")).take(20).collect();
    Err(if lines.is_empty() { complaint.into_owned() } else { lines.join("\n") })
}

fn compiler() -> Command {
    let mut command = Command::new("g++");
    command.args(FLAGS).args(machine_flags());
    command
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Name and bound of the kernel whose declaration goes on with `rest`, after `__global__`.
fn declared(mut rest: &str) -> (&str, &str) {
    let mut bound = "1024";
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("void") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("EMULATED_BOUNDS(") {
            let mut depth = 1;
            let end = after.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let end = end.unwrap_or(after.len() - 1);
            (bound, rest) = (&after[..end], &after[end + 1..]);
        } else {
            return (rest.split('(').next().unwrap_or_default().trim(), bound);
        }
    }
}

/// The kernels of a preprocessed text, each with the threads that it allows, as C++.
fn table(preprocessed: &str, source: &str) -> String {
    let parts: Vec<&str> = preprocessed.split("EMULATED_KERNEL").collect();
    // Templates are no kernels by themselves.
    let kernels =
        parts.windows(2).filter(|pair| pair[0].trim_end().ends_with("extern \"C\"")).map(|pair| declared(pair[1]));
    let rows: String =
        kernels.map(|(name, bound)| format!("  kernel<::{name}>(\"{name}\", bound({bound})),\n")).collect();
    let hash = hash([source.as_bytes()]);
    format!(
        r#"#include "kernels.cu"
#include "image.h"
#include "kernel.h"

const char KERNELS_HASH[] = "{hash}";
namespace emulate {{
const Kernel kernels[] = {{
{rows}  {{}}}};
}}
"#
    )
}

/// What decides the objects of the libraries besides the kernels: their sources, the compiler and its flags.
fn key() -> Result<String, String> {
    let version = run(Command::new("g++").arg("--version"))?;
    let folder = sources();
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "cpp" || ending == "h"));
    files.sort();
    let mut parts = vec![version, FLAGS.join(" "), machine_flags().join(" ")];
    for file in files {
        parts.push(file.display().to_string());
        parts.push(read(&file)?);
    }
    Ok(hash(parts.iter().map(String::as_bytes)))
}

/// Starts g++ for one object file.
fn compile(object: &Path, arguments: &[&std::ffi::OsStr]) -> Command {
    let mut command = compiler();
    command.arg("-I").arg(sources()).arg("-c").arg("-o").arg(object).args(arguments);
    command
}

/// Builds the libraries from the text of all kernels. Objects without kernels are kept in `objects` and used again. Two
/// compilers run at a time.
fn build_from(source: &str, objects: &Path, folder: &Path) -> Result<(), String> {
    for made in [objects, folder] {
        fs::create_dir_all(made).map_err(|error| format!("{}: {error}", made.display()))?;
    }
    let emulate = sources().join("emulate.h");
    write(&folder.join("kernels.cu"), source)?;
    let scanned = run(compiler()
        .args(["-E", "-P", "-DEMULATED_SCAN", "-x", "c++", "-include"])
        .arg(&emulate)
        .arg(folder.join("kernels.cu")))?;
    write(&folder.join("kernels.cpp"), &table(&scanned, source))?;
    let mut kernels = compile(&folder.join("kernels.o"), &["-include".as_ref(), emulate.as_os_str()]);
    kernels.arg("-Wno-unknown-pragmas").arg(folder.join("kernels.cpp"));
    let object_of = |file: &str| objects.join(Path::new(file).with_extension("o"));
    std::thread::scope(|scope| {
        let of_kernels = scope.spawn(move || run(&mut kernels));
        for file in LIBRARIES.iter().flat_map(|(_, _, files)| *files) {
            let object = object_of(file);
            if !object.exists() {
                let unfinished = object.with_extension("part");
                run(&mut compile(&unfinished, &[sources().join(file).as_os_str()]))?;
                fs::rename(&unfinished, &object).map_err(|error| format!("{}: {error}", object.display()))?;
            }
        }
        of_kernels.join().map_err(|_| "a thread panicked".to_owned())?
    })?;
    for (library, links, files) in LIBRARIES {
        let mut command = compiler();
        command.args(["-shared", "-Wl,--no-undefined", "-Wl,-rpath,$ORIGIN"]).arg(format!("-Wl,-soname,{library}"));
        command.arg("-o").arg(folder.join(library));
        command.args(files.iter().map(|file| object_of(file)));
        match library {
            "libcuda.so" => command.arg(folder.join("kernels.o")),
            "libcublasLt.so" => command.arg("-L").arg(folder).arg("-lcuda"),
            _ => &mut command,
        };
        run(&mut command)?;
        for link in links {
            let link = folder.join(link);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(library, &link).map_err(|error| format!("{}: {error}", link.display()))?;
            }
        }
    }
    Ok(())
}

/// Builds the libraries of the emulated GPU in a folder, for a program that runs with `LD_LIBRARY_PATH` set to it.
///
/// # Errors
/// A line about g++ if it is missing or refuses the sources.
pub fn build(folder: &Path) -> Result<(), String> {
    build_from(&crate::image::source(), &folder.join("objects"), folder)
}

/// Cargo's target folder: the one that holds the running program.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let found = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    found.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), Path::to_path_buf)
}

/// The folder with the libraries of the emulated GPU, which are built if they are not there. Processes that ask at the
/// same time wait for one of them.
///
/// # Errors
/// As [`build`].
pub fn libraries() -> Result<PathBuf, String> {
    cached(&crate::image::source(), |_| Ok(()))
}

/// The folder with the libraries for some kernels, and what `finish` adds to it.
pub(super) fn cached(kernels: &str, finish: impl FnOnce(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let root = target_folder().join("emulated-gpu");
    let key = key()?;
    let folder = root.join(format!("{key}-{}", hash([kernels.as_bytes()])));
    let failed = |error: std::io::Error| format!("{}: {error}", root.display());
    fs::create_dir_all(&root).map_err(failed)?;
    let lock = fs::File::create(root.join("lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    if !folder.exists() {
        let unfinished = root.join("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(failed)?;
        }
        build_from(kernels, &root.join(format!("{key}-objects")), &unfinished)?;
        finish(&unfinished)?;
        fs::rename(&unfinished, &folder).map_err(failed)?;
    }
    Ok(folder)
}

/// Builds a C++ program against the libraries in a folder.
#[cfg(test)]
pub(super) fn link(source: &str, program: &Path, folder: &Path) -> Result<(), String> {
    let mut command = compiler();
    command.arg("-o").arg(program).arg(sources().join(source)).arg("-L").arg(folder);
    command.args(["-lcuda", "-lcublasLt", "-lnvrtc", "-Wl,-rpath,$ORIGIN"]);
    run(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn kernels_are_found_with_their_bounds() {
        let text = r#"
            extern "C" EMULATED_KERNEL void EMULATED_BOUNDS(32 * (4), 2) first(float* x) { f(); }
            template <class T> EMULATED_KERNEL void no_kernel(T x) {}
            extern "C" EMULATED_KERNEL EMULATED_BOUNDS(64) void second(int n) {} extern "C" EMULATED_KERNEL
            void third () {}
        "#;
        let table = table(text, "");
        for row in [
            "kernel<::first>(\"first\", bound(32 * (4), 2))",
            "kernel<::second>(\"second\", bound(64))",
            "(\"third\", bound(1024))",
        ] {
            assert!(table.contains(row), "{row} in {table}");
        }
        assert_eq!(table.matches("kernel<").count(), 3);
    }
}
