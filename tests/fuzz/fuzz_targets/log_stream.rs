#![no_main]
//! `cargo fuzz run log_stream`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("log_stream", bytes);
});
