#![no_main]
//! `cargo fuzz run hf_targets`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("hf_targets", bytes);
});
