#![no_main]
//! `cargo fuzz run idx_labels`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("idx_labels", bytes);
});
