#![no_main]
//! `cargo fuzz run cifar10_bin`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| _ = mlomae_fuzz::run("cifar10_bin", bytes));
