#![no_main]
//! `cargo fuzz run image_folder`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("image_folder", bytes);
});
