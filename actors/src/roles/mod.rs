//! The actors: workers, their supervisor, and telemetry. The only room that knows actix.

pub mod outcome;
pub mod supervisor;
pub mod telemetry;
pub mod worker;
