//! The Arrow logs of a run: five tables, each an open IPC stream and sealed Parquet parts under one schema.
//!
//! ```text
//! logs/live/<table>-000003.arrows      the open stream, flushed every second: readable also when its writer is killed
//! logs/<table>/part-000002.parquet     sealed parts: always whole, so that a query over *.parquet never fails
//! logs/sums.jsonl                      rows, bytes and CRC-32 of the sealed parts
//! ```
//! Stream n is sealed as part n. While both exist the part counts, so no row is ever seen twice. A part that is damaged
//! is named by readers, who go on with the others; a repair sets it aside as `part-….parquet.damaged`.

mod abandoned;
mod columns;
mod error;
mod export;
mod live;
mod paths;
mod read;
mod repair;
mod rows;
mod schema;
mod sealed;
mod source;
mod stream;
mod sums;
mod tail;
mod text;
mod writer;

#[cfg(test)]
mod bomb_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;

pub use abandoned::{Abandoned, EVENT_WENT_BACK};
pub use error::LogError;
pub use export::{ExportFormat, Exported, export, export_all};
pub use read::{ReadRow, Segmented, TableReader};
pub use repair::{RepairReport, RepairedStream, TruncateReport, repair, truncate_after};
pub use rows::{ActorRow, EvalRow, EventRow, Level, LogRow, MaskRow, MetricRow, Severity, Text};
pub use schema::{KEY_GRID, KEY_NAME, KEY_PROGRAM, KEY_RUN, KEY_VERSION, SCHEMA_VERSION, SchemaMeta, Table, schema};
pub use sealed::DamagedPart;
pub use tail::{Follow, tail};
pub use writer::{LogContext, LogPolicy, LogWriter, ResumeReport};

pub use crate::clock::{Clock, Stamp};
