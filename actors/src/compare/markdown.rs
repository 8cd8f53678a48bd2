//! A summary as Markdown, for reports and pull requests.

use std::fmt::Write;

use super::statistics::{ALPHA, MIN_SEEDS, Verdict};
use super::summary::{Comparison, Summary, Values};
use super::tables;

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

/// What judges, where other data judge than train, once for all forms of a summary.
#[must_use]
pub fn judge_text(summary: &Summary) -> Option<String> {
    let judge = summary.judge.as_ref()?;
    Some(format!(
        "Transfer: arms train on their own data and labels, and are judged with {judge}, with the normalisation that they \
         were trained with."
    ))
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
    if let Some(judge) = judge_text(summary) {
        writeln!(out, "{}\n", cell_text(&judge))?;
    }
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
        let untrained = arm.untrained.then(|| "untrained".to_owned());
        let differs: Vec<String> = untrained.into_iter().chain(differs).collect();
        writeln!(out, " {} |", cell_text(&differs.join(", ")))?;
    }
    writeln!(out)
}

fn write_costs(summary: &Summary, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## Cost of a cell\n\n{}", tables::costs(summary).markdown(cell_text))
}

fn write_failures(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Some(table) = tables::failures(summary) else { return Ok(()) };
    writeln!(out, "## Failed cells\n\n{}", table.markdown(cell_text))
}

fn write_tuning(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Some(table) = tables::trials(summary) else { return Ok(()) };
    let heading = "## Hyperparameters, chosen on the role validation and seeds of their own";
    writeln!(out, "{heading}\n\n{}", table.markdown(cell_text))
}
