//! The log tables: a file each, which declares the columns once, and the list of them.
//!
//! A new table is a file here, its `mod` and its line in the list below: schema, writer, readers, repair, export and
//! help follow from it. A new column is a field at the end of its struct; an `Option` there raises the minor version of
//! [`super::SCHEMA_VERSION`], anything else the major one.

mod actors;
mod evals;
mod events;
mod masks;
mod metrics;

use std::fmt;
use std::str::FromStr;

use super::batch::{AnyBatchBuilder, BatchBuilder};
use super::common::Common;
use super::row::{Declaration, Declared, Urgency, WrongList};

/// A row of any table, as a trait object.
pub(super) trait AnyRow {
    /// How soon readers must see it.
    fn urgency(&self) -> Urgency;

    /// The first list whose length is not `num_patches`.
    fn wrong_list(&self, num_patches: usize) -> Option<WrongList>;

    /// Bytes that the row holds beside itself.
    fn heap_bytes(&self) -> usize;

    /// Adds the row to the builder of its table.
    fn push(&self, common: &Common, builders: &mut TableBuilders);
}

impl<R: Row> AnyRow for R {
    fn urgency(&self) -> Urgency {
        Declared::urgency(self)
    }

    fn wrong_list(&self, num_patches: usize) -> Option<WrongList> {
        R::wrong_list(self, num_patches)
    }

    fn heap_bytes(&self) -> usize {
        R::heap_bytes(self)
    }

    fn push(&self, common: &Common, builders: &mut TableBuilders) {
        R::builder(builders).push(common, self);
    }
}

/// Makes [`Table`], [`TABLES`], [`LogRow`] and [`TableBuilders`] of the list of tables.
macro_rules! tables {
    ($($Name:ident = $file:ident::$Row:ident,)+) => {
        $(use $file::$Row;)+

        /// The rows of all tables.
        pub mod rows {
            $(pub use super::$file::$Row;)+
        }

        /// One of the log tables.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Table {
            $(#[doc = concat!("The table of [`", stringify!($Row), "`].")] $Name,)+
        }

        /// The properties of each table, in their usual order.
        pub static TABLES: [Declaration; Table::ALL.len()] = [$(<$Row as Declared>::DECLARATION),+];

        impl Table {
            /// All tables, in their usual order.
            pub const ALL: [Self; [$(stringify!($Name)),+].len()] = [$(Self::$Name),+];
        }

        /// A row of any table, for channels.
        #[derive(Debug, Clone, PartialEq)]
        pub enum LogRow {
            $(#[doc = concat!("A row of [`Table::", stringify!($Name), "`].")] $Name($Row),)+
        }

        impl LogRow {
            /// The table that it belongs to.
            #[must_use]
            pub const fn table(&self) -> Table {
                match self {
                    $(Self::$Name(_) => Table::$Name,)+
                }
            }

            pub(super) fn any(&self) -> &dyn AnyRow {
                match self {
                    $(Self::$Name(row) => row,)+
                }
            }
        }

        /// The rows of each table on their way into a batch.
        #[derive(Debug)]
        pub struct TableBuilders {
            $($file: BatchBuilder<$Row>,)+
        }

        impl TableBuilders {
            /// Builders without rows, whose lists have `num_patches` values.
            pub(super) fn new(num_patches: usize) -> Self {
                Self { $($file: BatchBuilder::new(num_patches)),+ }
            }

            /// The builder of `table`.
            pub(super) fn of(&mut self, table: Table) -> &mut dyn AnyBatchBuilder {
                match table {
                    $(Table::$Name => &mut self.$file,)+
                }
            }
        }

        $(
            impl Row for $Row {
                const TABLE: Table = Table::$Name;

                fn builder(builders: &mut TableBuilders) -> &mut BatchBuilder<Self> {
                    &mut builders.$file
                }

                fn of(row: &LogRow) -> Option<&Self> {
                    if let LogRow::$Name(row) = row { Some(row) } else { None }
                }
            }

            impl From<$Row> for LogRow {
                fn from(row: $Row) -> Self {
                    Self::$Name(row)
                }
            }
        )+
    };
}

tables! {
    Metrics = metrics::MetricRow,
    Masks = masks::MaskRow,
    Actors = actors::ActorRow,
    Events = events::EventRow,
    Evals = evals::EvalRow,
}

/// A row of a table in the list.
pub trait Row: Declared + Into<LogRow> {
    /// Its table.
    const TABLE: Table;

    /// Where its table's rows are collected.
    #[doc(hidden)]
    fn builder(builders: &mut TableBuilders) -> &mut BatchBuilder<Self>;

    /// The row, if it is one of this table.
    fn of(row: &LogRow) -> Option<&Self>;
}

impl LogRow {
    /// The row, if it is one of the table of `R`.
    #[must_use]
    pub fn get<R: Row>(&self) -> Option<&R> {
        R::of(self)
    }

    /// Bytes that the row holds beside itself: its lists and texts.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.any().heap_bytes()
    }
}

impl Table {
    /// What is declared of it.
    #[must_use]
    pub fn declaration(self) -> &'static Declaration {
        &TABLES[self.index()]
    }

    /// The name in paths and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.declaration().name
    }

    /// Its place in [`Table::ALL`] and [`TABLES`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The names of all tables, with `separator` between them.
    #[must_use]
    pub fn names(separator: &str) -> String {
        Self::ALL.map(Self::name).join(separator)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A table name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("logs: unknown table, expected one of {}: `{name}`", Table::names(", "))]
pub struct UnknownTable {
    name: String,
}

impl FromStr for Table {
    type Err = UnknownTable;

    fn from_str(name: &str) -> Result<Self, UnknownTable> {
        Self::ALL.into_iter().find(|table| table.name() == name).ok_or_else(|| UnknownTable { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::row::Columns;

    #[test]
    fn the_readme_has_each_table_as_it_is_declared() {
        let readme = include_str!("../../../../README.md");
        for Declaration { name, about, columns, .. } in &TABLES {
            let line = format!("| `{name}` | {about} | `{}` |", columns.join("`, `"));
            assert!(readme.lines().any(|found| found == line), "README.md lacks the line: {line}");
        }
        for name in Common::NAMES {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn names_are_told_apart_and_no_column_has_one_of_the_common_names() {
        for (table, declaration) in Table::ALL.into_iter().zip(&TABLES) {
            assert_eq!(table.name(), declaration.name);
            assert_eq!(table.name().parse(), Ok(table), "two tables have one name");
            let mut names = [Common::NAMES, declaration.columns].concat();
            let num_names = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), num_names, "{table}: two columns have one name");
        }
    }

    #[test]
    fn the_size_of_a_row_counts_its_lists_and_texts() {
        let mask = MaskRow {
            sample_id: 0,
            label: None,
            policy_version: 0,
            mask_ratio: 0.5,
            mask: vec![false; 6],
            score: Some(vec![0.0; 6]),
            patch_loss: None,
            grid_h: 2,
            grid_w: 3,
        };
        assert_eq!(LogRow::from(mask.clone()).heap_bytes(), 6 + 24);
        assert_eq!(Table::Masks.declaration().list_bytes(6), 6 + 24 + 24);
        let row = MetricRow { name: "loss".into(), value: 0.0, split: String::from("own").into(), unit: "1".into() };
        assert_eq!(LogRow::from(row).heap_bytes(), 3, "literals take no memory of the row");
        assert_eq!(Table::Metrics.declaration().list_bytes(6), 0);
        assert!(LogRow::from(mask).get::<MetricRow>().is_none());
    }
}
