//! Training curves of a comparison's arms, read from the logs of their cells.

use std::collections::BTreeMap;

use mlomae_dataflow::record::Metric;
use mlomae_storage::logs::{Level, Logged, MetricRow, TableReader};

use super::cell::Status;
use super::summary::Known;

/// Points of a curve at most.
const MAX_POINTS: usize = 160;

/// What is drawn, with its heading and what to think of it.
const DRAWN: [(Metric, &str, &str); 4] = [
    (
        Metric::ValidationAccuracy,
        "Accuracy of the online head on the role validation",
        "Of arms whose levels 2 and 3 work; the head lags behind the encoder.",
    ),
    (
        Metric::PretrainLoss,
        "Pretraining loss L_m",
        "Each arm by its own masks and weights: arms with other masks are not comparable by it.",
    ),
    (Metric::ObjectScoreAuc, "Scores as a detector of the object", "Area under the ROC curve; 0.5 is chance."),
    (Metric::ScoreSaturation, "Saturated scores", "Share of the scores outside 0.02 to 0.98."),
];

/// A curve of an arm: mean over the cells that have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The arm.
    pub arm: String,
    /// Level-1 step and value, ascending.
    pub points: Vec<(f64, f64)>,
}

/// A chart: one number of all arms that log it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Its heading.
    pub title: &'static str,
    /// What to think of it.
    pub note: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// The curves, in the order of the arms.
    pub curves: Vec<Curve>,
}

/// The charts of which there is anything to draw, of finished cells: one that diverged would hide all others. Logs that
/// cannot be read are left out.
#[must_use]
pub fn charts(arms: &[String], cells: &[Known<'_>]) -> Vec<Chart> {
    let mut rows: BTreeMap<(usize, usize), Vec<(f64, f64)>> = BTreeMap::new();
    for (cell, _) in cells.iter().filter(|(_, record)| record.status == Status::Finished) {
        let Some(arm) = arms.iter().position(|arm| *arm == cell.arm) else { continue };
        // Ignored: a page without this cell's curves is better than none.
        let Ok(logged) = TableReader::<MetricRow>::new(&cell.dir).poll() else { continue };
        for Logged { place, row, .. } in logged {
            let is_it = |(metric, _, _): &(Metric, &str, &str)| is_of(*metric, place.level, &row);
            if let Some(chart) = DRAWN.iter().position(is_it).filter(|_| row.value.is_finite()) {
                rows.entry((chart, arm)).or_default().push((place.step as f64, row.value));
            }
        }
    }
    let chart = |(number, (metric, title, note)): (usize, &(Metric, &'static str, &'static str))| {
        let curve = |arm: usize| {
            let points = binned(rows.get(&(number, arm))?);
            (points.len() > 1).then(|| Curve { arm: arms[arm].clone(), points })
        };
        let curves: Vec<Curve> = (0..arms.len()).filter_map(curve).collect();
        let mut values = curves.iter().flat_map(|curve| curve.points.iter().map(|(_, value)| *value));
        let first = values.next()?;
        // Flat lines say nothing, as where no score ever saturates.
        values.any(|value| value != first).then_some(Chart { title, note, unit: metric.unit(), curves })
    };
    DRAWN.iter().enumerate().filter_map(chart).collect()
}

fn is_of(metric: Metric, level: Option<Level>, row: &MetricRow) -> bool {
    level == Some(metric.level()) && row.name == metric.name() && row.split == metric.split()
}

/// Means over bins of steps, of all cells together.
fn binned(rows: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let last = rows.iter().map(|(step, _)| *step).fold(0.0, f64::max);
    let steps: std::collections::BTreeSet<u64> = rows.iter().map(|(step, _)| *step as u64).collect();
    let num_bins = steps.len().clamp(1, MAX_POINTS);
    let mut sums = vec![(0.0, 0.0, 0.0); num_bins];
    for (step, value) in rows {
        let bin = ((step / (last + 1.0) * num_bins as f64) as usize).min(num_bins - 1);
        let (num, steps, values) = &mut sums[bin];
        *num += 1.0;
        *steps += step;
        *values += value;
    }
    sums.into_iter().filter(|(num, ..)| *num > 0.0).map(|(num, steps, values)| (steps / num, values / num)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_keep_the_mean_and_the_order() {
        let rows: Vec<(f64, f64)> =
            (0..1000).flat_map(|step| [(f64::from(step), 1.0), (f64::from(step), 3.0)]).collect();
        let points = binned(&rows);
        assert_eq!(points.len(), MAX_POINTS);
        assert!(points.iter().all(|(_, value)| (value - 2.0).abs() < 1e-12));
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(binned(&[(4.0, 1.0), (9.0, 5.0)]), [(4.0, 1.0), (9.0, 5.0)]);
    }
}
