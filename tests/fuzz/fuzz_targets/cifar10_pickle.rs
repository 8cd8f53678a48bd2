#![no_main]
//! `cargo fuzz run cifar10_pickle`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("cifar10_pickle", bytes);
});
