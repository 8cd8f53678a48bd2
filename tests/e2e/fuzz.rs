//! The fuzz targets over their corpora and over structured random damage of them: 2 seconds, or
//! MLOMAE_FUZZ_SECONDS. `cargo fuzz` runs the same targets with coverage; see `tests/fuzz/README.md`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::luck::Luck;
use crate::place::{file_names, read};

#[path = "../fuzz/targets.rs"]
mod targets;

use targets::{TARGETS, run};

/// An input that takes longer counts as a hang. Generous, because virtual machines may be paused for a while.
const HANGS: Duration = Duration::from_secs(300);

/// The largest input in bytes.
const MAX_LEN: usize = 1 << 16;

/// Boundary values of integers, which often break decoders.
const NUMBERS: [u64; 16] =
    [0, 1, 2, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];

/// A corpus's files by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let seeds: Vec<_> = file_names(&folder).into_iter().map(|name| (name.clone(), read(&folder.join(name)))).collect();
    assert!(!seeds.is_empty(), "{target} has no corpus");
    seeds
}

/// A position in `0..=len`, often near one of its ends, where headers and footers are.
fn place(luck: &mut Luck, len: usize) -> usize {
    let near = luck.below(64.min(len as u64 + 1)) as usize;
    match luck.below(3) {
        0 => near,
        1 => len - near,
        _ => luck.below(len as u64 + 1) as usize,
    }
}

/// Damages `bytes` in one way.
fn damage(bytes: &mut Vec<u8>, other: &[u8], luck: &mut Luck) {
    let at = place(luck, bytes.len());
    let longest = 1 << luck.below(9);
    let len = (1 + luck.below(longest) as usize).min(bytes.len() - at);
    match luck.below(10) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..at + len)),
        2 => bytes[at..at + len].iter_mut().for_each(|byte| *byte = luck.any() as u8),
        3 => {
            let number = NUMBERS[luck.below(16) as usize];
            let width = [1, 2, 4, 8][luck.below(4) as usize];
            let number = if luck.below(2) == 0 { number.to_le_bytes() } else { number.swap_bytes().to_le_bytes() };
            let number = if number[0] == 0 && number[7] != 0 { &number[8 - width..] } else { &number[..width] };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        4 => {
            let copied = bytes[at..at + len].to_vec();
            let to = place(luck, bytes.len());
            bytes.splice(to..to, copied);
        }
        5 => {
            let (from, to) = (place(luck, other.len()), place(luck, other.len()));
            let part = other[from.min(to)..from.max(to)].to_vec();
            bytes.splice(at..at + len, part);
        }
        6 => bytes.splice(at..at, std::iter::repeat_n(luck.any() as u8, len)).for_each(drop),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                match luck.below(3) {
                    0 => *byte ^= 1 << luck.below(8),
                    1 => *byte = byte.wrapping_add(luck.below(5) as u8).wrapping_sub(2),
                    _ => *byte = luck.any() as u8,
                }
            }
        }
    }
    bytes.truncate(MAX_LEN);
}

/// Saves an input that found a bug, so that it can be run again.
fn keep(target: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/artifacts").join(target);
    std::fs::create_dir_all(&folder).expect("folder");
    let path = folder.join("crash");
    std::fs::write(&path, input).expect("written");
    path
}

/// Does not print panics of other crates' decoders, which are caught and become errors.
fn quiet_decoders() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|location| location.file().contains("/registry/")) {
            before(info);
        }
    }));
}

/// Peak of the process's resident memory in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

/// Whether MLOMAE_FUZZ_TARGET chose one target: then the peak memory is that target's.
fn is_alone() -> bool {
    std::env::var_os("MLOMAE_FUZZ_TARGET").is_some()
}

/// The input that a worker is running, for the watchdog.
type Current = Mutex<Option<(Instant, Vec<u8>)>>;

fn try_input(name: &str, input: &[u8], current: &Current) {
    *current.lock().expect("not poisoned") = Some((Instant::now(), input.to_vec()));
    if catch_unwind(AssertUnwindSafe(|| run(name, input))).is_err() {
        panic!("{name}: an input of {} bytes found a panic: {}", input.len(), keep(name, input).display());
    }
    *current.lock().expect("not poisoned") = None;
}

/// Runs the corpus, then damaged copies of it for `time`; returns the number of inputs.
fn fuzz(name: &str, seed: u64, time: Duration, current: &Current) -> u64 {
    let mut luck = Luck::of(seed);
    let seeds = seeds(name);
    let mut num_inputs = 0;
    for (_, bytes) in &seeds {
        try_input(name, bytes, current);
        num_inputs += 1;
    }
    let (begin, mut peak) = (Instant::now(), peak_mib());
    while begin.elapsed() < time {
        let mut input = seeds[luck.below(seeds.len() as u64) as usize].1.clone();
        let other = &seeds[luck.below(seeds.len() as u64) as usize].1;
        for _ in 0..=luck.below(4) {
            damage(&mut input, other, &mut luck);
        }
        try_input(name, &input, current);
        num_inputs += 1;
        if is_alone() && peak_mib() > peak + 100 {
            peak = peak_mib();
            println!("{name}: an input took {peak} MiB: {}", keep(name, &input).display());
        }
    }
    num_inputs
}

#[test]
fn no_damaged_file_makes_a_reader_panic_hang_or_fill_the_memory() {
    quiet_decoders();
    let seconds = std::env::var("MLOMAE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let seed = Luck::new(5).any();
    let chosen = std::env::var("MLOMAE_FUZZ_TARGET").ok();
    let targets: Vec<_> =
        TARGETS.into_iter().filter(|target| chosen.as_ref().is_none_or(|chosen| target.0 == chosen)).collect();
    let num_workers = std::thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    let time = Duration::from_secs_f64(seconds) * num_workers as u32 / targets.len() as u32;
    let currents: Vec<Current> = targets.iter().map(|_| Mutex::new(None)).collect();
    let is_over = AtomicBool::new(false);
    let begin = Instant::now();
    let mut counts = std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for ((name, _), current) in targets.iter().zip(&currents) {
                    let current = current.lock().expect("not poisoned");
                    if let Some((since, input)) = &*current
                        && since.elapsed() > HANGS
                    {
                        println!("{name}: an input hangs: {}", keep(name, input).display());
                        std::process::abort();
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let workers: Vec<_> = (0..num_workers)
            .map(|worker| {
                let (currents, targets) = (&currents, &targets);
                scope.spawn(move || {
                    let mine = targets.iter().enumerate().skip(worker).step_by(num_workers);
                    let fuzz = |(place, (name, _)): (usize, &(&'static str, _))| {
                        (*name, fuzz(name, seed ^ place as u64, time, &currents[place]))
                    };
                    mine.map(fuzz).collect::<Vec<_>>()
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        watchdog.join().expect("the watchdog only looks");
        results.into_iter().flat_map(|result| result.expect("no finding")).collect::<Vec<_>>()
    });
    counts.sort_unstable();
    for (name, num_inputs) in &counts {
        println!("{name:20} {num_inputs:8} inputs");
        assert!(*num_inputs >= 1, "{name}");
    }
    let total: u64 = counts.iter().map(|count| count.1).sum();
    let peak = peak_mib();
    println!(
        "{total} inputs of {} targets in {:.1} s, peak memory {peak} MiB",
        counts.len(),
        begin.elapsed().as_secs_f64()
    );
    // A page of a Parquet file may claim up to 2 GiB, which its decoder allocates before it reads the bytes.
    assert!(peak < 4096, "peak memory {peak} MiB");
}

#[test]
fn every_target_accepts_its_whole_seeds() {
    // A target that refuses every input in its first check would test nothing else.
    let (mut num_accepted, mut num_refused) = (0, 0);
    for (name, _) in TARGETS {
        for (seed, bytes) in seeds(name) {
            let is_accepted = run(name, &bytes);
            assert_eq!(is_accepted, !seed.starts_with("refused"), "{name}/{seed}");
            num_accepted += u32::from(is_accepted);
            num_refused += u32::from(!is_accepted);
        }
    }
    println!("{num_accepted} seeds accepted, {num_refused} bad ones refused");
}
