//! A summary as Markdown, for reports and pull requests.

use std::fmt::Write;

use super::cell::Status;
use super::statistics::{ALPHA, MIN_SEEDS, Verdict};
use super::summary::{ArmSummary, Comparison, Summary, Values};
use crate::watch::progress::duration_text;

/// Factor and digits with which values of a unit are shown: shares in per cent.
#[must_use]
pub fn scale(unit: &str) -> (f64, usize) {
    if unit == "share" { (100.0, 2) } else { (1.0, 4) }
}

/// A value in its unit's scale.
#[must_use]
pub fn value_text(value: f64, unit: &str) -> String {
    let (factor, digits) = scale(unit);
    format!("{:.digits$}", factor * value)
}

/// A difference in its unit's scale, with its sign.
#[must_use]
pub fn difference_text(value: f64, unit: &str) -> String {
    let (factor, digits) = scale(unit);
    format!("{:+.digits$}", factor * value)
}

/// A large number with few digits.
#[must_use]
pub fn amount_text(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 1e5 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1} k", v / 1e3),
        v if v < 1e9 => format!("{:.2} M", v / 1e6),
        v => format!("{:.2} G", v / 1e9),
    }
}

/// A p-value: small ones by their power of ten.
#[must_use]
pub fn p_text(p: f64) -> String {
    if p < 1e-3 { format!("{p:.1e}") } else { format!("{p:.3}") }
}

/// What is said of a comparison.
#[must_use]
pub fn verdict_text(comparison: &Comparison) -> String {
    match (comparison.verdict, comparison.seeds_needed) {
        (None, _) => "not tested".to_owned(),
        (Some(Verdict::NotShown), Some(seeds)) => {
            let n = comparison.paired.num_pairs as u64;
            if seeds <= n {
                "not shown".to_owned()
            } else {
                format!("not shown; such a difference needs about {seeds} seeds")
            }
        }
        (Some(Verdict::NotShown), None) if comparison.paired.sd.is_none() => "not shown; one seed".to_owned(),
        (Some(Verdict::NotShown), None) if comparison.paired.mean == 0.0 => "not shown; the means are equal".to_owned(),
        (Some(Verdict::NotShown), None) => "not shown, nor with ten thousand seeds".to_owned(),
        (Some(verdict), _) => verdict.as_str().to_owned(),
    }
}

/// The interval of a comparison, `[-0.3, +1.2]`; a dash if there is none.
#[must_use]
pub fn interval_text(comparison: &Comparison) -> String {
    match (comparison.paired.low, comparison.paired.high) {
        (Some(low), Some(high)) => {
            format!("[{}, {}]", difference_text(low, &comparison.unit), difference_text(high, &comparison.unit))
        }
        _ => "-".to_owned(),
    }
}

fn mean_text(values: Option<&Values>) -> String {
    let Some(values) = values else { return "-".to_owned() };
    let mean = value_text(values.mean, &values.unit);
    match values.sd {
        Some(sd) => format!("{mean} ± {}", value_text(sd, &values.unit)),
        None => mean,
    }
}

/// Text in a cell of a table.
fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// What the numbers of a summary mean, once for all forms of it.
#[must_use]
pub fn method_text(summary: &Summary) -> String {
    format!(
        "Paired by seed. Intervals are 95 % t-intervals of the mean difference; p is the exact two-sided sign-flip test, \
         adjusted by Holm over the tested arms of each reference. Better (or worse) needs at least {MIN_SEEDS} seeds, an \
         adjusted p below {ALPHA} and an interval without 0, in {} alone; the other metrics are for reading. \
         Seeds needed: for the power 0.8 at the strictest of Holm's levels.",
        summary.primary
    )
}

/// The unit of a metric in a heading: ` (%)`, ` (points)`.
fn heading_unit(unit: &str, of_difference: bool) -> &'static str {
    match (unit, of_difference) {
        ("share", false) => " (%)",
        ("share", true) => " (points)",
        _ => "",
    }
}

/// The summary as Markdown.
#[must_use]
pub fn markdown(summary: &Summary) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(summary, &mut out);
    out
}

fn write_all(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let seeds: Vec<String> = summary.seeds.iter().map(u64::to_string).collect();
    writeln!(out, "# {}\n", cell_text(&summary.name))?;
    writeln!(
        out,
        "mlomae {}, base `{}`, seeds {}, budget: {}. {}.\n",
        summary.version,
        summary.base,
        seeds.join(", "),
        summary.budget,
        summary.machine
    )?;
    if !summary.is_complete {
        writeln!(out, "**Not complete**: some cells are not finished.\n")?;
    }
    for warning in &summary.warnings {
        writeln!(out, "- {}", cell_text(warning))?;
    }
    if !summary.warnings.is_empty() {
        writeln!(out)?;
    }
    for reference in &summary.references {
        write_reference(summary, reference, out)?;
    }
    writeln!(out, "{}\n", method_text(summary))?;
    write_values(summary, out)?;
    write_costs(summary, out)?;
    write_failures(summary, out)?;
    write_tuning(summary, out)?;
    Ok(())
}

fn write_reference(summary: &Summary, reference: &str, out: &mut String) -> std::fmt::Result {
    let of = |metric: &str| -> Vec<&Comparison> {
        let is_it = |one: &&Comparison| one.reference == reference && one.metric == metric;
        summary.comparisons.iter().filter(is_it).collect()
    };
    let primary = of(&summary.primary);
    writeln!(out, "## Against {reference}\n")?;
    if primary.is_empty() {
        return writeln!(out, "No pair of finished cells yet.\n");
    }
    let others: Vec<&String> = summary.metrics.iter().filter(|metric| **metric != summary.primary).collect();
    let unit = heading_unit(&primary[0].unit, true);
    write!(out, "| arm | {}{unit} | 95 % interval | p | p, Holm | seeds | verdict |", summary.primary)?;
    for metric in &others {
        let unit = of(metric).first().map_or("", |one| heading_unit(&one.unit, true));
        write!(out, " {metric}{unit} |")?;
    }
    writeln!(out, "\n|---|--:|---|--:|--:|--:|---|{}", "---|".repeat(others.len()))?;
    for one in primary {
        write!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            one.arm,
            difference_text(one.paired.mean, &one.unit),
            interval_text(one),
            p_text(one.paired.p),
            one.p_holm.map_or("-".to_owned(), p_text),
            one.paired.num_pairs,
            verdict_text(one)
        )?;
        for metric in &others {
            match of(metric).into_iter().find(|other| other.arm == one.arm) {
                Some(other) => {
                    let mean = difference_text(other.paired.mean, &other.unit);
                    write!(out, " {mean} {} |", interval_text(other))?;
                }
                None => write!(out, " - |")?,
            }
        }
        writeln!(out)?;
    }
    let is_missing = |name: &&str| *name != reference && of(&summary.primary).iter().all(|one| one.arm != **name);
    let missing: Vec<&str> = summary.arms.iter().map(|arm| arm.name.as_str()).filter(is_missing).collect();
    if !missing.is_empty() {
        writeln!(out, "\nWithout a pair of finished cells: {}.", missing.join(", "))?;
    }
    writeln!(out)
}

fn write_values(summary: &Summary, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## Values, mean ± standard deviation over seeds\n")?;
    write!(out, "| arm |")?;
    for metric in &summary.metrics {
        let unit =
            summary.arms.iter().find_map(|arm| arm.values.get(metric)).map_or("", |v| heading_unit(&v.unit, false));
        write!(out, " {metric}{unit} |")?;
    }
    writeln!(out, " differs from {} in |", summary.arms.first().map_or("the first", |arm| &arm.name))?;
    writeln!(out, "|---|{}---|", "--:|".repeat(summary.metrics.len()))?;
    for arm in &summary.arms {
        write!(out, "| {} |", arm.name)?;
        for metric in &summary.metrics {
            write!(out, " {} |", mean_text(arm.values.get(metric)))?;
        }
        let differs: Vec<String> = arm.differs.iter().map(|(key, value)| format!("`{key}={value}`")).collect();
        let untrained = (arm.amount.outer == 0).then(|| "untrained".to_owned());
        let differs: Vec<String> = untrained.into_iter().chain(differs).collect();
        writeln!(out, " {} |", cell_text(&differs.join(", ")))?;
    }
    writeln!(out)
}

fn write_costs(summary: &Summary, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## Cost of a cell\n")?;
    writeln!(out, "| arm | outer iterations | level-1 steps | images | labels | GFLOP | training time | cells |")?;
    writeln!(out, "|---|--:|--:|--:|--:|--:|--:|---|")?;
    for arm in &summary.arms {
        let amount = &arm.amount;
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            arm.name,
            amount.outer,
            amount.steps,
            amount_text(amount.images as f64),
            amount_text(amount.labels as f64),
            amount_text(amount.gflop),
            seconds_text(arm),
            states_text(arm)
        )?;
    }
    writeln!(out)
}

/// Seconds of a cell, and with how many others it shared the machine.
#[must_use]
pub fn seconds_text(arm: &ArmSummary) -> String {
    let Some(seconds) = arm.seconds else { return "-".to_owned() };
    let shared = if arm.jobs > 1 { format!(", {} at a time", arm.jobs) } else { String::new() };
    if seconds < 60.0 { format!("{seconds:.1} s{shared}") } else { format!("{}{shared}", duration_text(seconds)) }
}

/// How many cells of an arm are how far.
#[must_use]
pub fn states_text(arm: &ArmSummary) -> String {
    let all = [Status::Finished, Status::Failed, Status::Interrupted, Status::Trained, Status::Begun, Status::Pending];
    let count = |status: Status| arm.cells.iter().filter(|cell| cell.status == status).count();
    let parts = all.into_iter().map(|status| (count(status), status)).filter(|(count, _)| *count > 0);
    parts.map(|(count, status)| format!("{count} {}", status.as_str())).collect::<Vec<_>>().join(", ")
}

fn write_failures(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let failed = || {
        let of_arm = |arm: &'_ ArmSummary| -> Vec<(String, super::summary::CellSummary)> {
            let failed = arm.cells.iter().filter(|cell| cell.status == Status::Failed);
            failed.map(|cell| (arm.name.clone(), cell.clone())).collect()
        };
        summary.arms.iter().flat_map(of_arm)
    };
    if failed().next().is_none() {
        return Ok(());
    }
    writeln!(out, "## Failed cells\n\n| arm | seed | exit code | error |\n|---|--:|--:|---|")?;
    for (arm, cell) in failed() {
        let code = cell.exit_code.map_or("-".to_owned(), |code| code.to_string());
        writeln!(out, "| {arm} | {} | {code} | {} |", cell.seed, cell_text(cell.error.as_deref().unwrap_or("-")))?;
    }
    writeln!(out)
}

fn write_tuning(summary: &Summary, out: &mut String) -> std::fmt::Result {
    if summary.tuning.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Hyperparameters, chosen on the role validation and seeds of their own\n")?;
    writeln!(out, "| arm | trial | mean {} | chosen |\n|---|---|--:|---|", summary.primary)?;
    let unit = super::evaluations::kind_of(&summary.primary).map_or("1", |kind| kind.unit);
    for choice in &summary.tuning {
        for (number, (set, values)) in choice.trials.iter().enumerate() {
            let values: Option<Vec<f64>> = values.iter().copied().collect();
            let mean = values.map_or("failed".to_owned(), |v| value_text(v.iter().sum::<f64>() / v.len() as f64, unit));
            let chosen = if number == choice.chosen { "chosen" } else { "" };
            writeln!(out, "| {} | `{}` | {mean} | {chosen} |", choice.arm, cell_text(&set.join(" ")))?;
        }
    }
    writeln!(out)
}
