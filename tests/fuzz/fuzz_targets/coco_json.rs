#![no_main]
//! `cargo fuzz run coco_json`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("coco_json", bytes);
});
