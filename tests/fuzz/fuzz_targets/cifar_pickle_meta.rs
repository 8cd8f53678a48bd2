#![no_main]
//! `cargo fuzz run cifar_pickle_meta`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("cifar_pickle_meta", bytes);
});
