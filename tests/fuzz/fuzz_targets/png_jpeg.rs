#![no_main]
//! `cargo fuzz run png_jpeg`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("png_jpeg", bytes);
});
