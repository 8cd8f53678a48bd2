//! The Arrow logs of a run: tables ([`TABLES`]), each an open IPC stream and sealed Parquet parts under one schema.
//!
//! ```text
//! logs/live/<table>-000003.arrows      the open stream, flushed every second: readable also after a kill
//! logs/<table>/part-000002.parquet     sealed parts: always whole, so that a query over *.parquet never fails
//! logs/sums.jsonl                      rows, bytes and CRC-32 of the sealed parts
//! ```
//! Stream n is sealed as part n. While both exist the part counts, so no row is ever seen twice. Readers
//! report a damaged part and skip it; a repair renames it to `part-….parquet.damaged`.
//!
//! Each table is declared in one file of `tables/`, from which follow its row, its schema, its writer and its reader:
//!
//! ```
//! use mlomae_storage::logs::{
//!     Clock, Level, LogContext, LogError, LogPolicy, LogWriter, MetricRow, Place, TableReader,
//! };
//!
//! # fn main() -> Result<(), LogError> {
//! let run = std::env::temp_dir().join(format!("mlomae-logs-{}", std::process::id()));
//! let context = LogContext {
//!     run_id: "example".into(),
//!     segment: 0,
//!     patch_grid: (4, 4),
//!     program_version: "0.1.0".into(),
//!     clock: Clock::start(),
//! };
//! let mut log = LogWriter::open(&run, context, LogPolicy::default())?;
//! for step in 1..=3 {
//!     let place = Place { stamp: log.clock().stamp(), epoch: 0, step, level: Some(Level::Pretrain) };
//!     let value = 1.0 / step as f64;
//!     log.push(place, MetricRow { name: "loss".into(), value, split: "pretrain".into(), unit: "1".into() })?;
//! }
//! log.close()?;
//!
//! let rows = TableReader::<MetricRow>::new(&run).poll()?;
//! let losses: Vec<_> = rows.iter().map(|logged| (logged.place.step, logged.row.value)).collect();
//! assert_eq!(losses[..2], [(1, 1.0), (2, 0.5)]);
//! # let _ = std::fs::remove_dir_all(&run);
//! # Ok(())
//! # }
//! ```

mod abandoned;
mod batch;
mod columns;
mod common;
mod error;
mod export;
mod live;
mod paths;
mod read;
mod repair;
mod row;
mod schema;
mod sealed;
mod source;
mod stream;
mod sums;
mod tables;
mod tail;
mod text;
mod words;
mod writer;

#[cfg(test)]
mod bomb_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;

pub use abandoned::{Abandoned, EVENT_WENT_BACK};
pub use common::Place;
pub use error::LogError;
pub use export::{ExportFormat, Exported, export, export_all};
pub use read::{Logged, TableReader};
pub use repair::{RepairReport, RepairedStream, TruncateReport, repair, truncate_after};
pub use row::Declaration;
pub use schema::{KEY_GRID, KEY_NAME, KEY_PROGRAM, KEY_RUN, KEY_VERSION, SCHEMA_VERSION, SchemaMeta, schema};
pub use sealed::DamagedPart;
pub(crate) use sealed::write_parquet;
pub use tables::rows::*;
pub use tables::{LogRow, Row, TABLES, Table, UnknownTable};
pub use tail::{Follow, tail};
pub use words::{Level, Severity, Text};
pub use writer::{LogContext, LogPolicy, LogWriter, ResumeReport};

pub use crate::clock::{Clock, Stamp};
