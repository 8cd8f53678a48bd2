//! Decompression bombs: parts whose rows need far more memory than the file has bytes.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;

use super::fault_tests::{by_hand, ctx, push_step};
use super::paths::part_path;
use super::sealed::{Part, write_part};
use super::sums::Sums;
use super::*;

/// A run with one row of events, whose part is replaced by `copies` of it with other texts in the column `column`.
fn bomb(run: &Path, column: &str, text: &str, copies: usize) -> u64 {
    let mut log = LogWriter::open(run, ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    let place = Place { stamp: Clock::start().stamp(), epoch: 0, step: 0, level: None };
    let row = EventRow {
        severity: Severity::Info,
        kind: "test".into(),
        stage: None,
        message: "small".into(),
        fields: "{}".into(),
    };
    log.push(place, row).unwrap();
    log.close().unwrap();
    let path = part_path(run, Table::Events, 1);
    let part = Part::open(run, Table::Events, 1, &Sums::read(run).unwrap()).unwrap();
    let schema: SchemaRef = part.schema();
    let batch = part.read(&path).unwrap().remove(0);
    let at = schema.index_of(column).unwrap();
    let mut columns = batch.columns().to_vec();
    let texts: ArrayRef = Arc::new(StringArray::from(vec![text; batch.num_rows()]));
    columns[at] = arrow::compute::cast(&texts, schema.field(at).data_type()).unwrap();
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    write_part(run, Table::Events, 1, &schema, &[], (0..copies).map(|_| Ok(batch.clone()))).unwrap();
    std::fs::metadata(&path).unwrap().len()
}

#[test]
fn a_part_whose_dictionary_says_much_in_each_row_is_passed_over_by_name() {
    let text = "x".repeat(1 << 19);
    // As text, and as a dictionary of a column that is one.
    for column in ["message", "kind"] {
        let root = tempfile::tempdir().unwrap();
        let num_bytes = bomb(root.path(), column, &text, 200);
        assert!(num_bytes < 1 << 20, "{num_bytes}");
        let named = |damaged: Vec<DamagedPart>| {
            let lines: Vec<String> = damaged.iter().map(ToString::to_string).collect();
            let is_it = |line: &String| line.contains("events/part-000001.parquet") && line.contains("at most");
            assert!(lines.len() == 1 && lines.iter().all(is_it), "{lines:?}");
        };
        let (mut follow, lines) = Follow::last(root.path(), Table::Events, 3).unwrap();
        assert_eq!(lines, [""; 0]);
        named(follow.take_damaged());
        let mut reader = TableReader::<EventRow>::new(root.path());
        assert_eq!(reader.poll().unwrap().len(), 0);
        named(reader.take_damaged());
        let out = root.path().join("out.csv");
        let exported = export(root.path(), Table::Events, ExportFormat::Csv, &out).unwrap();
        assert_eq!(exported.num_rows, 0);
        named(exported.damaged);
    }
}

#[test]
fn a_part_of_many_equal_rows_is_read() {
    let root = tempfile::tempdir().unwrap();
    bomb(root.path(), "message", "the same again", 100_000);
    assert_eq!(TableReader::<EventRow>::new(root.path()).poll().unwrap().len(), 100_000);
}
