#![no_main]
//! `cargo fuzz run log_part`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("log_part", bytes);
});
