//! The five log tables: names, columns, metadata.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Metadata, Schema, SchemaRef, TimeUnit};

use super::error::LogError;

/// Version of the table schemas. A new nullable column at the end raises the minor number, anything else the major one.
pub const SCHEMA_VERSION: &str = "1.0";

/// Metadata key: `mlomae.<table>`.
pub const KEY_NAME: &str = "mlomae.schema.name";
/// Metadata key: [`SCHEMA_VERSION`] of the writer.
pub const KEY_VERSION: &str = "mlomae.schema.version";
/// Metadata key: the run's id.
pub const KEY_RUN: &str = "mlomae.run_id";
/// Metadata key: the version of the program that wrote the rows.
pub const KEY_PROGRAM: &str = "mlomae.program.version";
/// Metadata key: patches down and across, `14x14`.
pub const KEY_GRID: &str = "mlomae.patch_grid";

/// One of the five log tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Losses, norms, rates: one value a row.
    Metrics,
    /// Masks and scores of a fixed panel of samples.
    Masks,
    /// Cumulative counters of every stage instance.
    Actors,
    /// What happened, with its severity.
    Events,
    /// Results of evaluations.
    Evals,
}

impl Table {
    /// All tables, in their usual order.
    pub const ALL: [Self; 5] = [Self::Metrics, Self::Masks, Self::Actors, Self::Events, Self::Evals];

    /// The name in paths and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Masks => "masks",
            Self::Actors => "actors",
            Self::Events => "events",
            Self::Evals => "evals",
        }
    }

    /// Its place in [`Table::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Table {
    type Err = LogError;

    fn from_str(name: &str) -> Result<Self, LogError> {
        Self::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| LogError::UnknownTable(name.to_string()))
    }
}

/// What a table's schema says about the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaMeta {
    /// The run's id.
    pub run_id: String,
    /// The version of the program that writes the rows.
    pub program_version: String,
    /// Patches (down, across); their product is the length L of the mask lists.
    pub patch_grid: (u16, u16),
}

impl SchemaMeta {
    /// Number of patches L.
    pub fn num_patches(&self) -> usize {
        usize::from(self.patch_grid.0) * usize::from(self.patch_grid.1)
    }

    /// Reads it back from a schema's metadata.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Option<Self> {
        let (down, across) = metadata.get(KEY_GRID)?.split_once('x')?;
        Some(Self {
            run_id: metadata.get(KEY_RUN)?.clone(),
            program_version: metadata.get(KEY_PROGRAM)?.clone(),
            patch_grid: (down.parse().ok()?, across.parse().ok()?),
        })
    }
}

fn dict() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn list(item: DataType, len: usize) -> DataType {
    let len = i32::try_from(len).unwrap_or(i32::MAX);
    DataType::FixedSizeList(Arc::new(Field::new("item", item, false)), len)
}

/// The columns of `table`, with `num_patches` values in each mask list.
fn fields(table: Table, num_patches: usize) -> Vec<Field> {
    use DataType::{Float32, Float64, Int16, Int32, Int64, Utf8};
    let must = |name: &str, kind: DataType| Field::new(name, kind, false);
    let may = |name: &str, kind: DataType| Field::new(name, kind, true);
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![
        must("run_id", dict()),
        must("ts", time),
        must("wall_s", Float64),
        must("segment", Int32),
        must("epoch", Int32),
        must("step", Int64),
        may("level", dict()),
    ];
    fields.extend(match table {
        Table::Metrics => {
            vec![must("name", dict()), must("value", Float64), must("split", dict()), must("unit", dict())]
        }
        Table::Masks => vec![
            must("sample_id", Int64),
            may("label", Int32),
            must("policy_version", Int64),
            must("mask_ratio", Float32),
            must("mask", list(DataType::Boolean, num_patches)),
            may("score", list(Float32, num_patches)),
            may("patch_loss", list(Float32, num_patches)),
            must("grid_h", Int16),
            must("grid_w", Int16),
        ],
        Table::Actors => vec![
            must("stage", dict()),
            must("instance", Int16),
            must("items", Int64),
            must("bytes", Int64),
            must("busy_s", Float64),
            must("wait_in_s", Float64),
            must("wait_out_s", Float64),
            must("queue_len", Int32),
            must("queue_cap", Int32),
            must("queue_bytes", Int64),
            must("utilization", Float32),
            must("restarts", Int32),
            must("lag", Int32),
        ],
        Table::Events => vec![
            must("severity", dict()),
            must("kind", dict()),
            may("stage", dict()),
            must("message", Utf8),
            must("fields", Utf8),
        ],
        Table::Evals => vec![
            must("task", dict()),
            must("split", dict()),
            must("metric", dict()),
            must("value", Float64),
            must("n", Int64),
            must("checkpoint", Utf8),
            must("seconds", Float64),
        ],
    });
    fields
}

/// The schema of `table` with its metadata.
pub fn schema(table: Table, meta: &SchemaMeta) -> SchemaRef {
    let metadata = HashMap::from([
        (KEY_NAME.to_string(), format!("mlomae.{table}")),
        (KEY_VERSION.to_string(), SCHEMA_VERSION.to_string()),
        (KEY_RUN.to_string(), meta.run_id.clone()),
        (KEY_PROGRAM.to_string(), meta.program_version.clone()),
        (KEY_GRID.to_string(), format!("{}x{}", meta.patch_grid.0, meta.patch_grid.1)),
    ]);
    Arc::new(Schema::new_with_metadata(fields(table, meta.num_patches()), metadata))
}

/// Checks that `found` is this program's schema of `table`, or one of a later minor version.
///
/// The error is the reason, without the file.
pub(crate) fn recognise(table: Table, found: &Schema) -> Result<SchemaMeta, String> {
    let name = found.metadata().get(KEY_NAME).map_or("", String::as_str);
    if name != format!("mlomae.{table}") {
        return Err(format!("expected the schema `mlomae.{table}`, got `{name}`"));
    }
    let version = found.metadata().get(KEY_VERSION).map_or("", String::as_str);
    let major = |version: &str| version.split('.').next().map(str::to_string);
    if major(version) != major(SCHEMA_VERSION) {
        return Err(format!("expected schema version 1.x, got `{version}`"));
    }
    let meta = SchemaMeta::from_metadata(found.metadata()).ok_or("schema metadata without run id or patch grid")?;
    if meta.num_patches() > 1 << 24 {
        return Err(format!("patch grid too large: {}x{}", meta.patch_grid.0, meta.patch_grid.1));
    }
    let expected = fields(table, meta.num_patches());
    for (i, want) in expected.iter().enumerate() {
        match found.fields().get(i) {
            Some(got) if got.name() == want.name() && got.data_type() == want.data_type() => {}
            Some(got) => {
                return Err(format!(
                    "expected column {i} to be `{}` {}, got `{}` {}",
                    want.name(),
                    want.data_type(),
                    got.name(),
                    got.data_type()
                ));
            }
            None => return Err(format!("column {i} `{}` is missing", want.name())),
        }
    }
    if let Some(extra) = found.fields().iter().skip(expected.len()).find(|f| !f.is_nullable()) {
        return Err(format!("unexpected column that is not nullable: `{}`", extra.name()));
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> SchemaMeta {
        SchemaMeta { run_id: "r".into(), program_version: "0.1.0".into(), patch_grid: (3, 5) }
    }

    #[test]
    fn recognises_its_own_schemas_and_only_those() {
        for table in Table::ALL {
            let own = schema(table, &meta());
            assert_eq!(recognise(table, &own).unwrap(), meta());
            for other in Table::ALL.into_iter().filter(|t| *t != table) {
                assert!(recognise(other, &own).is_err());
            }
            assert_eq!(table.name().parse::<Table>().unwrap(), table);
        }
        assert_eq!("x".parse::<Table>().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn minor_versions_may_add_nullable_columns_at_the_end() {
        let own = schema(Table::Evals, &meta());
        let with = |field: Field, version: &str| {
            let mut metadata = own.metadata().clone();
            metadata.insert(KEY_VERSION, version);
            let mut fields: Vec<_> = own.fields().iter().map(|f| f.as_ref().clone()).collect();
            fields.push(field);
            Schema::new_with_metadata(fields, metadata)
        };
        assert!(recognise(Table::Evals, &with(Field::new("later", DataType::Int8, true), "1.1")).is_ok());
        assert!(recognise(Table::Evals, &with(Field::new("later", DataType::Int8, false), "1.1")).is_err());
        let reason = recognise(Table::Evals, &with(Field::new("later", DataType::Int8, true), "2.0")).unwrap_err();
        assert!(reason.contains("`2.0`"), "{reason}");
    }
}
