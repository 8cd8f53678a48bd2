#![no_main]
//! `cargo fuzz run mask_png`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("mask_png", bytes);
});
