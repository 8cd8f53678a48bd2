//! Measuring: the benchmark, the search for workers and queues, and the simulation of a pipeline on other cores.

pub mod bench;
pub mod measurement;
pub mod simulation;
pub mod tune;
pub mod workload;
