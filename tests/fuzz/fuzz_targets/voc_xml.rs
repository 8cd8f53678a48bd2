#![no_main]
//! `cargo fuzz run voc_xml`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("voc_xml", bytes);
});
