//! Abandoned history: rows of steps that a run did, and then did again after it was resumed from an older checkpoint.
//!
//! `metrics`, `masks` and `evals` hold only the history that counts, since rows after the checkpoint are removed.
//! `actors` and `events` record the work that was done, so theirs stay, and an event [`EVENT_WENT_BACK`] marks them: a
//! row of an earlier segment than the event's, and of a later step, belongs to a history that was abandoned.

use std::path::Path;

use serde_json::json;

use super::error::LogError;
use super::paths;
use super::read::{Logged, TableReader};
use super::sealed::Part;
use super::sums::Sums;
use super::tables::Table;
use super::tables::rows::{ActorRow, EventRow};
use super::words::Severity;

/// Kind of the event that marks a resume from a step before the last one of the run.
pub const EVENT_WENT_BACK: &str = "went_back";

/// Which rows belong to abandoned history, by the [`EVENT_WENT_BACK`] events of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Abandoned {
    /// Segment and step of each event.
    marks: Vec<(i32, i64)>,
}

impl Abandoned {
    /// Records an event; true if it marks that the run went back.
    pub fn note(&mut self, event: &Logged<EventRow>) -> bool {
        let went_back = event.row.kind == EVENT_WENT_BACK;
        if went_back {
            self.marks.push((event.segment, event.place.step));
        }
        went_back
    }

    /// Whether a row of `segment` and `step` belongs to abandoned history.
    #[must_use]
    pub fn has(&self, segment: i32, step: i64) -> bool {
        self.marks.iter().any(|(of, to_step)| segment < *of && step > *to_step)
    }
}

/// The event of segment `segment`, which continues from `to_step` although the run had reached `from_step`.
pub(super) fn went_back(segment: i32, from_step: i64, to_step: i64) -> EventRow {
    EventRow {
        severity: Severity::Info,
        kind: EVENT_WENT_BACK.into(),
        stage: Some("log".into()),
        message: format!(
            "went back from step {from_step} to step {to_step}: actors and events of segments before {segment} and \
             steps after {to_step} belong to a history that was abandoned"
        ),
        fields: json!({ "from_step": from_step, "to_step": to_step, "segment": segment }).to_string(),
    }
}

/// The last step of all rows that count, if it is after `step`; otherwise any number up to `step`. All logs must be
/// sealed.
pub(super) fn last_step(run: &Path, step: i64) -> Result<i64, LogError> {
    // The Parquet statistics of the parts show whether there is anything to find, without reading rows.
    let sums = Sums::read(run)?;
    let greatest = |table: Table| -> Result<i64, LogError> {
        let mut greatest = 0;
        for number in paths::parts(run, table)? {
            let part = Part::open(run, table, number, &sums)?;
            greatest = greatest.max(if part.num_rows() > 0 { part.max_step().unwrap_or(i64::MAX) } else { 0 });
        }
        Ok(greatest)
    };
    // These hold no abandoned rows.
    let mut last = greatest(Table::Metrics)?.max(greatest(Table::Masks)?);
    let of_all = greatest(Table::Actors)?.max(greatest(Table::Events)?);
    if of_all <= step.max(last) {
        return Ok(last);
    }
    let rows = TableReader::<EventRow>::new(run).poll().and_then(|events| {
        let actors = TableReader::<ActorRow>::new(run).poll()?;
        Ok((events, actors))
    });
    // Too many rows for memory must not stop a resume: an unnecessary mark excludes no row that counts.
    let Ok((events, actors)) = rows else {
        return Ok(of_all);
    };
    let mut abandoned = Abandoned::default();
    for event in &events {
        abandoned.note(event);
    }
    let of_actors = actors.iter().map(|row| (row.segment, row.place.step));
    for (segment, step) in events.iter().map(|row| (row.segment, row.place.step)).chain(of_actors) {
        if !abandoned.has(segment, step) {
            last = last.max(step);
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stamp;
    use crate::logs::common::Place;

    #[test]
    fn a_row_is_abandoned_by_a_later_segment_that_began_before_it() {
        let mut abandoned = Abandoned::default();
        let place = |step| Place { stamp: Stamp { ts_us: 0, wall_s: 0.0 }, epoch: 0, step, level: None };
        let event = |segment, from, to| Logged { segment, place: place(to), row: went_back(segment, from, to) };
        assert!(abandoned.note(&event(1, 27, 20)) && abandoned.note(&event(3, 40, 10)));
        let row = EventRow { kind: "checkpoint".into(), ..went_back(9, 9, 0) };
        let other = Logged { segment: 9, place: place(0), row };
        assert!(!abandoned.note(&other));
        for (segment, step, expected) in
            [(0, 20, true), (0, 10, false), (0, 27, true), (1, 11, true), (2, 40, true), (2, 9, false), (3, 40, false)]
        {
            assert_eq!(abandoned.has(segment, step), expected, "{segment} {step}");
        }
    }
}
