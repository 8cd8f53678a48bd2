#![no_main]
//! `cargo fuzz run checkpoint_tensors`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("checkpoint_tensors", bytes);
});
