#![no_main]
//! `cargo fuzz run cifar100_bin`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("cifar100_bin", bytes);
});
