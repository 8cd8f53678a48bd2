//! The declaration of a table: the columns of its rows, and properties of the table as a whole.

use std::fmt::Debug;

use arrow::array::RecordBatch;
use arrow::datatypes::Field;

use super::columns::ColumnBuilder;

/// A struct whose fields are columns.
pub trait Columns: Clone + Debug + Send + Sync + Sized + 'static {
    /// Collects the values of each column.
    type Builders: Builders;
    /// Names of the columns.
    const NAMES: &'static [&'static str];

    /// The columns' types, with `num_patches` values in each list.
    fn fields(num_patches: usize) -> Vec<Field>;

    /// Builders without values.
    fn builders(num_patches: usize) -> Self::Builders;

    /// Adds the values to the builders.
    fn push(&self, builders: &mut Self::Builders);

    /// The values at `row` of a batch; none if a required column is missing, null or of another type.
    fn read(batch: &RecordBatch, row: usize) -> Option<Self>;

    /// The first list whose length is not `num_patches`.
    fn wrong_list(&self, num_patches: usize) -> Option<WrongList>;

    /// Heap memory of the values in bytes.
    fn heap_bytes(&self) -> usize;

    /// Heap memory of the lists of a row in bytes.
    fn list_bytes(num_patches: usize) -> usize;
}

/// The builders of columns that are declared together.
pub trait Builders: Debug + Send {
    /// All of them, in the columns' order.
    fn all(&mut self) -> Vec<&mut dyn ColumnBuilder>;
}

/// A list whose length is not the number of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongList {
    pub(super) column: &'static str,
    pub(super) len: usize,
}

/// How soon a row must be seen by readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// With the next flush.
    None,
    /// Soon, several such rows together.
    Soon,
    /// At once.
    Now,
}

/// The properties of a table.
#[derive(Debug)]
pub struct Declaration {
    /// The name in paths and on the command line.
    pub name: &'static str,
    /// What it holds, in a few words.
    pub about: &'static str,
    /// Names of its own columns, which follow those that all tables have.
    pub columns: &'static [&'static str],
    /// Whether a resume removes the rows after its checkpoint. Tables that are not truncated record the work that was
    /// done, including that of an abandoned history.
    pub is_truncated: bool,
    /// The types of its own columns.
    pub(super) fields: fn(num_patches: usize) -> Vec<Field>,
    /// Bytes of the lists in a row.
    pub(super) list_bytes: fn(num_patches: usize) -> usize,
}

impl Declaration {
    /// Heap memory of the lists of a row in bytes, with one value for each of `num_patches` patches; text is not
    /// counted.
    #[must_use]
    pub fn list_bytes(&self, num_patches: usize) -> usize {
        (self.list_bytes)(num_patches)
    }
}

/// The rows of a table.
pub trait Declared: Columns {
    /// The properties of the table.
    const DECLARATION: Declaration;

    /// How soon readers must see this row.
    fn urgency(&self) -> Urgency {
        Urgency::None
    }
}

/// Declares a struct whose fields are columns; their types say how they are written, read and counted
/// ([`super::columns::Value`]).
macro_rules! columns {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Row:ident {
            $($(#[$of_column:meta])+ $column:ident: $Type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $Row {
            $($(#[$of_column])+ pub $column: $Type,)+
        }

        const _: () = {
            use arrow::array::RecordBatch;
            use arrow::datatypes::Field;

            use $crate::logs::columns::{ColumnBuilder, Value};
            use $crate::logs::row::{Builders, Columns, WrongList};

            #[derive(Debug)]
            pub struct RowBuilders {
                $($column: <$Type as Value>::Builder,)+
            }

            impl Builders for RowBuilders {
                fn all(&mut self) -> Vec<&mut dyn ColumnBuilder> {
                    vec![$(&mut self.$column),+]
                }
            }

            impl Columns for $Row {
                type Builders = RowBuilders;
                const NAMES: &'static [&'static str] = &[$(stringify!($column)),+];

                fn fields(num_patches: usize) -> Vec<Field> {
                    vec![$(Field::new(
                        stringify!($column),
                        <$Type as Value>::data_type(num_patches),
                        <$Type as Value>::IS_NULLABLE,
                    )),+]
                }

                fn builders(num_patches: usize) -> RowBuilders {
                    RowBuilders { $($column: <$Type as Value>::builder(num_patches)),+ }
                }

                fn push(&self, builders: &mut RowBuilders) {
                    $(<$Type as Value>::push(Some(&self.$column), &mut builders.$column);)+
                }

                fn read(batch: &RecordBatch, row: usize) -> Option<Self> {
                    Some(Self {
                        $($column: match batch.column_by_name(stringify!($column)) {
                            Some(column) => <$Type as Value>::read(column, row)?,
                            None => <$Type as Value>::absent()?,
                        },)+
                    })
                }

                fn wrong_list(&self, num_patches: usize) -> Option<WrongList> {
                    let lists = [$((stringify!($column), self.$column.list_len())),+];
                    lists.into_iter().find_map(|(column, len)| {
                        len.filter(|len| *len != num_patches).map(|len| WrongList { column, len })
                    })
                }

                fn heap_bytes(&self) -> usize {
                    0 $(+ self.$column.heap_bytes())+
                }

                fn list_bytes(num_patches: usize) -> usize {
                    [$(<$Type as Value>::list_bytes(num_patches)),+].into_iter().fold(0, usize::saturating_add)
                }
            }
        };
    };
}

/// Declares a table: its name, what it holds, whether it is truncated on resume, optionally how urgent a row is, and
/// the struct of its rows, whose fields are its own columns.
macro_rules! table {
    (
        $name:literal: $about:literal, is_truncated: $is_truncated:literal $(, urgency: $urgency:expr)?;
        $(#[$meta:meta])*
        pub struct $Row:ident { $($columns:tt)+ }
    ) => {
        $crate::logs::row::columns! {
            $(#[$meta])*
            pub struct $Row { $($columns)+ }
        }

        impl $crate::logs::row::Declared for $Row {
            const DECLARATION: $crate::logs::row::Declaration = $crate::logs::row::Declaration {
                name: $name,
                about: $about,
                columns: <Self as $crate::logs::row::Columns>::NAMES,
                is_truncated: $is_truncated,
                fields: <Self as $crate::logs::row::Columns>::fields,
                list_bytes: <Self as $crate::logs::row::Columns>::list_bytes,
            };

            $(fn urgency(&self) -> $crate::logs::row::Urgency {
                let urgency: fn(&Self) -> $crate::logs::row::Urgency = $urgency;
                urgency(self)
            })?
        }
    };
}

pub(super) use {columns, table};
