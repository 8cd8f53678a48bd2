//! The columns that all tables have.

use std::sync::Arc;

use super::columns::Time;
use super::row::columns;
use super::words::Level;
use crate::clock::Stamp;

columns! {
    /// The first columns of each row.
    pub(super) struct Common {
        /// The run's id.
        run_id: Arc<str>,
        /// When the row was created, UTC.
        ts: Time,
        /// Seconds of running time since the run began, summed over its segments.
        wall_s: f64,
        /// How many times the run had been resumed.
        segment: i32,
        /// Epoch over the pretrain role, from 0.
        epoch: i32,
        /// Level-1 steps done.
        step: i64,
        /// Level of the optimisation problem, where the row belongs to one.
        level: Option<Level>,
    }
}

/// When a row was made, and where in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// When.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level, where the row belongs to one.
    pub level: Option<Level>,
}

impl Common {
    /// The columns of a row at `place` of the run `run_id`.
    pub(super) fn new(run_id: &Arc<str>, segment: i32, place: &Place) -> Self {
        let Place { stamp: Stamp { ts_us, wall_s }, epoch, step, level } = *place;
        Self { run_id: Arc::clone(run_id), ts: Time(ts_us), wall_s, segment, epoch, step, level }
    }

    pub(super) fn place(&self) -> Place {
        let stamp = Stamp { ts_us: self.ts.0, wall_s: self.wall_s };
        Place { stamp, epoch: self.epoch, step: self.step, level: self.level }
    }
}
