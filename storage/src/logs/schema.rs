//! The schemas of the tables in files: columns and metadata.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Metadata, Schema, SchemaRef};

use super::common::Common;
use super::row::Columns as _;
use super::tables::Table;

/// Version of the table schemas. A new nullable column at the end raises the minor number, anything else the major one.
pub const SCHEMA_VERSION: &str = "1.2";

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
    #[must_use]
    pub fn num_patches(&self) -> usize {
        usize::from(self.patch_grid.0) * usize::from(self.patch_grid.1)
    }

    /// Parses a schema's metadata.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Option<Self> {
        let (down, across) = metadata.get(KEY_GRID)?.split_once('x')?;
        Some(Self {
            run_id: metadata.get(KEY_RUN)?.clone(),
            program_version: metadata.get(KEY_PROGRAM)?.clone(),
            patch_grid: (down.parse().ok()?, across.parse().ok()?),
        })
    }
}

/// The columns of `table`, with `num_patches` values in each list.
fn fields(table: Table, num_patches: usize) -> Vec<Field> {
    let mut fields = Common::fields(num_patches);
    fields.extend((table.declaration().fields)(num_patches));
    fields
}

/// The schema of `table` with its metadata.
#[must_use]
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

/// The number before the dot.
fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or_default()
}

/// Checks that `found` is this program's schema of `table`, or one of another minor version.
///
/// The error is the reason, without the file.
pub(crate) fn recognise(table: Table, found: &Schema) -> Result<SchemaMeta, String> {
    let name = found.metadata().get(KEY_NAME).map_or("", String::as_str);
    if name != format!("mlomae.{table}") {
        return Err(format!("expected the schema `mlomae.{table}`, got `{name}`"));
    }
    let version = found.metadata().get(KEY_VERSION).map_or("", String::as_str);
    if major(version) != major(SCHEMA_VERSION) {
        return Err(format!("expected schema version {}.x, got `{version}`", major(SCHEMA_VERSION)));
    }
    let meta = SchemaMeta::from_metadata(found.metadata()).ok_or("schema metadata without run id or patch grid")?;
    if meta.num_patches() > 1 << 24 {
        return Err(format!("patch grid too large: {}x{}", meta.patch_grid.0, meta.patch_grid.1));
    }
    fits(&fields(table, meta.num_patches()), found)?;
    Ok(meta)
}

/// Checks that the columns of a file are the `expected` ones. At the end a later minor version may have further columns
/// and an earlier one may lack some, if they are nullable.
fn fits(expected: &[Field], found: &Schema) -> Result<(), String> {
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
            None if want.is_nullable() => {}
            None => return Err(format!("column {i} `{}` is missing", want.name())),
        }
    }
    match found.fields().iter().skip(expected.len()).find(|field| !field.is_nullable()) {
        Some(extra) => Err(format!("unexpected column that is not nullable: `{}`", extra.name())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Float64Type};

    use super::*;
    use crate::logs::batch::{AnyBatchBuilder, BatchBuilder};
    use crate::logs::row::{Columns, columns};

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
        let error = crate::logs::LogError::from("x".parse::<Table>().unwrap_err());
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.starts_with("logs: unknown table, expected one of metrics, masks, actors, "), "{text}");
        assert!(text.ends_with(": `x`"), "{text}");
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

    columns! {
        /// A row of a table before a minor version added columns.
        struct Before {
            /// A value.
            value: f64,
        }
    }

    columns! {
        /// A row of the same table after it.
        struct After {
            /// A value.
            value: f64,
            /// Added later.
            ci_low: Option<f64>,
            /// Added later.
            ci_high: Option<f64>,
        }
    }

    fn batch<R: Columns>(row: &R) -> arrow::array::RecordBatch {
        let mut builder = BatchBuilder::<R>::new(0);
        let stamp = crate::clock::Stamp { ts_us: 1, wall_s: 0.5 };
        let place = crate::logs::Place { stamp, epoch: 2, step: 3, level: None };
        builder.push(&Common::new(&"r".into(), 4, &place), row);
        let fields: Vec<_> = Common::fields(0).into_iter().chain(R::fields(0)).collect();
        builder.finish(&Arc::new(Schema::new(fields))).unwrap()
    }

    #[test]
    fn rows_of_earlier_and_later_minor_versions_are_read_with_what_they_have() {
        let (old, new) =
            (batch(&Before { value: 0.25 }), batch(&After { value: 0.5, ci_low: Some(0.4), ci_high: None }));
        assert_eq!(new.column_by_name("ci_low").unwrap().as_primitive::<Float64Type>().value(0), 0.4);
        assert_eq!(After::read(&old, 0), Some(After { value: 0.25, ci_low: None, ci_high: None }));
        assert_eq!(After::read(&new, 0), Some(After { value: 0.5, ci_low: Some(0.4), ci_high: None }));
        assert_eq!(Before::read(&new, 0), Some(Before { value: 0.5 }));
        let expected = |own: Vec<Field>| -> Vec<Field> { Common::fields(0).into_iter().chain(own).collect() };
        assert_eq!(fits(&expected(After::fields(0)), &old.schema()), Ok(()));
        assert_eq!(fits(&expected(Before::fields(0)), &new.schema()), Ok(()));
        let without: Vec<_> = old.schema().fields().iter().take(7).cloned().collect();
        let reason = fits(&expected(After::fields(0)), &Schema::new(without)).unwrap_err();
        assert_eq!(reason, "column 7 `value` is missing");
        let common = Common::read(&old, 0).unwrap();
        assert_eq!((&*common.run_id, common.segment, common.place().epoch, common.place().step), ("r", 4, 2, 3));
    }
}
