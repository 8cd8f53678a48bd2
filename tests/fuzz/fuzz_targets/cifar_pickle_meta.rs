#![no_main]
//! `cargo fuzz run cifar_pickle_meta`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| _ = mlomae_fuzz::run("cifar_pickle_meta", bytes));
