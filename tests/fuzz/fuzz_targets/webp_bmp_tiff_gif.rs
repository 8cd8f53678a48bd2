#![no_main]
//! `cargo fuzz run webp_bmp_tiff_gif`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("webp_bmp_tiff_gif", bytes);
});
