//! Nothing but a `Cargo.toml`: the features of third-party crates on which all parts of mlomae agree.

#![forbid(unsafe_code)]
