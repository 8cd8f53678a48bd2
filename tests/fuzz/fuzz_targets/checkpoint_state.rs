#![no_main]
//! `cargo fuzz run checkpoint_state`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mlomae_fuzz::run("checkpoint_state", bytes);
});
