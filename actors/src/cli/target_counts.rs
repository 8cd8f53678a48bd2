//! What `data info` prints of targets other than the class.

use std::io::{self, Write};

use mlomae_storage::dataset::{BoxCount, LabelCount, MapCount, TargetCounts, TargetSummary, ValueCount};
use mlomae_storage::escape::{one_line, shortened};
use serde_json::{Value, json};

/// Characters of a name that are printed.
const MAX_NAME: usize = 120;

fn share(part: u64, whole: u64) -> String {
    format!("{:.2} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// A heading, and a line for each name, which is shown before it.
fn told(counts: &TargetCounts) -> (String, Vec<String>) {
    match counts {
        TargetCounts::Class => (String::new(), Vec::new()),
        TargetCounts::Labels(labels) => {
            let line = |count: &LabelCount| {
                let LabelCount { num_present, num_absent, num_unknown } = count;
                format!("in {num_present} images, not in {num_absent}, unknown of {num_unknown}")
            };
            (format!("{} labels", labels.len()), labels.iter().map(line).collect())
        }
        TargetCounts::Values(values) => {
            let line = |count: &ValueCount| match count {
                ValueCount { num: 0, .. } => "never known".to_owned(),
                ValueCount { num, mean, std, range: [least, greatest], .. } => {
                    format!("mean {mean:.6}, std {std:.6}, from {least} to {greatest}, in {num} images")
                }
            };
            (format!("{} values", values.len()), values.iter().map(line).collect())
        }
        TargetCounts::Map { classes, num_without } => {
            let all = num_without + classes.iter().map(|class| class.num_pixels).sum::<u64>();
            let line = |count: &MapCount| {
                format!("{} of pixels, in {} images", share(count.num_pixels, all), count.num_images)
            };
            let heading = format!("{} classes, {} of pixels without one", classes.len(), share(*num_without, all));
            (heading, classes.iter().map(line).collect())
        }
        TargetCounts::Boxes { classes, num_empty } => {
            let line = |count: &BoxCount| {
                let ([small, medium, large], ignored) = (count.num, count.num_ignored);
                let num = small + medium + large;
                format!("{num} objects ({small} small, {medium} medium, {large} large), {ignored} ignored")
            };
            let num: usize = classes.iter().map(|class| class.num.iter().sum::<usize>()).sum();
            let ignored: usize = classes.iter().map(|class| class.num_ignored).sum();
            let num_classes = classes.len();
            let heading =
                format!("{num_classes} classes, {num} objects, {ignored} ignored; {num_empty} images without any");
            (heading, classes.iter().map(line).collect())
        }
    }
}

/// Prints counts as text.
pub(super) fn print(out: &mut dyn Write, summary: &TargetSummary) -> io::Result<()> {
    let (heading, lines) = told(&summary.counts);
    let column = summary.info.column.as_deref().map_or_else(String::new, |column| format!(" ({})", one_line(column)));
    writeln!(out, "  {:<8} {heading}{column}", summary.info.kind)?;
    if summary.num_unknown > 0 {
        writeln!(out, "  unknown of {} images", summary.num_unknown)?;
    }
    let names: Vec<_> =
        summary.info.names.iter().map(|name| one_line(&shortened(name, MAX_NAME)).into_owned()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for (number, (name, line)) in names.iter().zip(lines).enumerate() {
        writeln!(out, "    {number:>4}  {name:<width$}  {line}")?;
    }
    Ok(())
}

/// The same as a JSON object.
pub(super) fn json(summary: &TargetSummary) -> Value {
    let counts: Vec<Value> = match &summary.counts {
        TargetCounts::Class => Vec::new(),
        TargetCounts::Labels(labels) => {
            let of = |count: &LabelCount| json!({ "num_present": count.num_present, "num_absent": count.num_absent, "num_unknown": count.num_unknown });
            labels.iter().map(of).collect()
        }
        TargetCounts::Values(values) => {
            let of = |count: &ValueCount| match count.num {
                0 => json!({ "num": 0 }),
                num => {
                    json!({ "num": num, "mean": count.mean, "std": count.std, "min": count.range[0], "max": count.range[1] })
                }
            };
            values.iter().map(of).collect()
        }
        TargetCounts::Map { classes, .. } => classes
            .iter()
            .map(|count| json!({ "num_pixels": count.num_pixels, "num_images": count.num_images }))
            .collect(),
        TargetCounts::Boxes { classes, .. } => {
            let of = |count: &BoxCount| {
                let [small, medium, large] = count.num;
                json!({ "num_small": small, "num_medium": medium, "num_large": large, "num_ignored": count.num_ignored })
            };
            classes.iter().map(of).collect()
        }
    };
    let with_name = |(name, mut count): (&String, Value)| {
        count["name"] = json!(name);
        count
    };
    let counts: Vec<Value> = summary.info.names.iter().zip(counts).map(with_name).collect();
    let mut told = json!({
        "kind": summary.info.kind.as_str(),
        "column": summary.info.column,
        "num_unknown": summary.num_unknown,
        "counts": counts,
    });
    match &summary.counts {
        TargetCounts::Map { num_without, .. } => told["num_pixels_without"] = json!(num_without),
        TargetCounts::Boxes { num_empty, .. } => told["num_images_without"] = json!(num_empty),
        _ => {}
    }
    told
}
