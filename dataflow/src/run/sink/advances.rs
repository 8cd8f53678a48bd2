//! Progress of training over time.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::counts::Step;
use crate::record::{Metric, MetricRow, Moment};

/// Number of advances kept: those of several seconds of the fastest runs, while a record waits about one.
const MAX_ADVANCES: usize = 16_384;

/// When training reached a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Advance {
    pub(super) at: SystemTime,
    pub(super) step: Step,
    pub(super) epoch: i32,
    /// Outer iterations by which the policy in use was behind, as last measured.
    pub(super) policy_lag: i32,
}

/// Progress of training over time, for events and samples, which are written later than they are made.
#[derive(Debug)]
pub(super) struct Advances(VecDeque<Advance>);

impl Advances {
    pub(super) fn starting(step: Step, epoch: i32) -> Self {
        Self(VecDeque::from([Advance { at: UNIX_EPOCH, step, epoch, policy_lag: 0 }]))
    }

    /// Records the progress that a row of `metrics` made `at` a time shows.
    pub(super) fn note(&mut self, at: SystemTime, moment: Moment, row: &MetricRow) {
        let newest = self.newest(|_| true);
        if moment.step > newest.step {
            if self.0.len() == MAX_ADVANCES {
                self.0.pop_front();
            }
            self.0.push_back(Advance { at, step: moment.step, epoch: moment.epoch, ..newest });
        }
        if Metric::of(moment.level, &row.name) == Some(Metric::PolicyLag)
            && let Some(newest) = self.0.back_mut()
        {
            newest.policy_lag = row.value as i32;
        }
    }

    /// The newest advance that `is_past`, else the oldest that is remembered.
    pub(super) fn newest(&self, is_past: impl Fn(&Advance) -> bool) -> Advance {
        let found = self.0.iter().rev().find(|advance| is_past(advance)).or_else(|| self.0.front());
        found.copied().unwrap_or(Advance { at: UNIX_EPOCH, step: Step(0), epoch: 0, policy_lag: 0 })
    }
}
