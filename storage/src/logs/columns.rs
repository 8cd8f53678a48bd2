//! The types of columns: for each type of a row's field its Arrow type, its builder, and how it is read back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, DictionaryArray, FixedSizeListArray, Float32Builder, Float64Builder,
    Int16Builder, Int32Builder, Int64Builder, NullBufferBuilder, PrimitiveBuilder, StringArray, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, FieldRef, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::error::ArrowError;

use super::words::{Level, Severity, Text, Word};

/// A type whose values fill a column. Only an `Option` may be null.
pub trait Value: Sized {
    /// Collects the values.
    type Builder: ColumnBuilder + 'static;
    /// Whether the column may hold nulls.
    const IS_NULLABLE: bool = false;

    /// The column's type, with `num_patches` values in a list.
    fn data_type(num_patches: usize) -> DataType;

    /// A builder without values.
    fn builder(num_patches: usize) -> Self::Builder;

    /// Adds a value, or a null.
    fn push(value: Option<&Self>, builder: &mut Self::Builder);

    /// The value at `row`; none if it is null or not one of this type.
    fn read(column: &dyn Array, row: usize) -> Option<Self>;

    /// The value for a column that is missing because an earlier minor version wrote the file; none if it is required.
    fn absent() -> Option<Self> {
        None
    }

    /// Heap memory of the value in bytes.
    fn heap_bytes(&self) -> usize {
        0
    }

    /// Upper bound of the heap memory of lists, which have one value a patch; 0 for text, which has no bound.
    fn list_bytes(_num_patches: usize) -> usize {
        0
    }

    /// Length of the list, if it is one.
    fn list_len(&self) -> Option<usize> {
        None
    }
}

/// Collects the values of a column.
pub trait ColumnBuilder: Debug + Send {
    /// The `num_rows` values so far as an array.
    ///
    /// # Errors
    /// [`ArrowError`] if Arrow refuses them.
    fn finish(&mut self, num_rows: usize) -> Result<ArrayRef, ArrowError>;

    /// Clears a dictionary of more than `limit` values. Only between two streams: keys start again at 0.
    fn trim(&mut self, _limit: usize) {}
}

/// The values of a dictionary column (string interning): a value keeps its key until the vocabulary is cleared.
///
/// Keys are only ever appended, so a reader that keeps just the newest dictionary of a stream still decodes every
/// batch.
#[derive(Debug, Default)]
pub struct Vocabulary {
    keys: HashMap<String, i32>,
    values: Vec<String>,
    /// The values as an array, shared by all batches until a value is added.
    array: Option<ArrayRef>,
}

impl Vocabulary {
    pub(super) fn key(&mut self, value: &str) -> i32 {
        if let Some(key) = self.keys.get(value) {
            return *key;
        }
        let key = i32::try_from(self.values.len()).unwrap_or(i32::MAX);
        self.keys.insert(value.to_string(), key);
        self.values.push(value.to_string());
        self.array = None;
        key
    }

    pub(super) fn array(&mut self) -> ArrayRef {
        let values = &self.values;
        Arc::clone(self.array.get_or_insert_with(|| Arc::new(StringArray::from_iter_values(values))))
    }
}

/// A dictionary column.
#[derive(Debug, Default)]
pub struct DictionaryBuilder {
    keys: Int32Builder,
    vocabulary: Vocabulary,
}

impl DictionaryBuilder {
    fn push(&mut self, value: Option<&str>) {
        self.keys.append_option(value.map(|value| self.vocabulary.key(value)));
    }
}

impl ColumnBuilder for DictionaryBuilder {
    fn finish(&mut self, _: usize) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(DictionaryArray::try_new(self.keys.finish(), self.vocabulary.array())?))
    }

    fn trim(&mut self, limit: usize) {
        debug_assert!(self.keys.values_slice().is_empty(), "keys in flight");
        if self.vocabulary.values.len() > limit {
            self.vocabulary = Vocabulary::default();
        }
    }
}

fn dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The text at `row` of a column, plain or by a dictionary; none for a null.
fn text(column: &dyn Array, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    if let Some(plain) = column.as_string_opt::<i32>() {
        return Some(plain.value(row));
    }
    let dictionary = column.as_dictionary_opt::<Int32Type>()?;
    let key = usize::try_from(dictionary.keys().value(row)).ok()?;
    let values = dictionary.values().as_string_opt::<i32>()?;
    (key < values.len()).then(|| values.value(key))
}

/// Implements [`Value`] for types that are written to a dictionary column.
macro_rules! dictionaries {
    ($($Type:ty: $to_text:expr, $of_text:expr, $bytes:expr;)+) => {$(
        impl Value for $Type {
            type Builder = DictionaryBuilder;

            fn data_type(_: usize) -> DataType {
                dictionary_type()
            }

            fn builder(_: usize) -> DictionaryBuilder {
                DictionaryBuilder::default()
            }

            fn push(value: Option<&Self>, builder: &mut DictionaryBuilder) {
                let to_text: fn(&Self) -> &str = $to_text;
                builder.push(value.map(to_text));
            }

            fn read(column: &dyn Array, row: usize) -> Option<Self> {
                let of_text: fn(&str) -> Option<Self> = $of_text;
                of_text(text(column, row)?)
            }

            fn heap_bytes(&self) -> usize {
                let bytes: fn(&Self) -> usize = $bytes;
                bytes(self)
            }
        }
    )+};
}

dictionaries! {
    Text: |text| text, |text| Some(Cow::Owned(text.to_owned())), |text| match text {
        Cow::Borrowed(_) => 0,
        Cow::Owned(text) => text.len(),
    };
    Arc<str>: |text| text, |text| Some(text.into()), |_| 0;
    Level: |level| level.name(), Level::of_word, |_| 0;
    Severity: |severity| severity.name(), Severity::of_word, |_| 0;
}

impl ColumnBuilder for StringBuilder {
    fn finish(&mut self, _: usize) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(Self::finish(self)))
    }
}

impl Value for String {
    type Builder = StringBuilder;

    fn data_type(_: usize) -> DataType {
        DataType::Utf8
    }

    fn builder(_: usize) -> StringBuilder {
        StringBuilder::new()
    }

    fn push(value: Option<&Self>, builder: &mut StringBuilder) {
        builder.append_option(value);
    }

    fn read(column: &dyn Array, row: usize) -> Option<Self> {
        text(column, row).map(str::to_owned)
    }

    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl<T: ArrowPrimitiveType + Debug> ColumnBuilder for PrimitiveBuilder<T> {
    fn finish(&mut self, _: usize) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(Self::finish(self)))
    }
}

fn number<T: ArrowPrimitiveType>(column: &dyn Array, row: usize) -> Option<T::Native> {
    let column = column.as_primitive_opt::<T>()?;
    column.is_valid(row).then(|| column.value(row))
}

/// Implements [`Value`] for types that are written to a column of numbers.
macro_rules! numbers {
    ($($Type:ty: $Arrow:ty, $Builder:ty, $kind:expr;)+) => {$(
        impl Value for $Type {
            type Builder = $Builder;

            fn data_type(_: usize) -> DataType {
                $kind
            }

            fn builder(_: usize) -> $Builder {
                <$Builder>::new()
            }

            fn push(value: Option<&Self>, builder: &mut $Builder) {
                builder.append_option(value.copied());
            }

            fn read(column: &dyn Array, row: usize) -> Option<Self> {
                number::<$Arrow>(column, row)
            }
        }
    )+};
}

numbers! {
    i64: Int64Type, Int64Builder, DataType::Int64;
    i32: Int32Type, Int32Builder, DataType::Int32;
    i16: Int16Type, Int16Builder, DataType::Int16;
    f64: Float64Type, Float64Builder, DataType::Float64;
    f32: Float32Type, Float32Builder, DataType::Float32;
}

/// Microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub(super) i64);

impl Value for Time {
    type Builder = TimestampMicrosecondBuilder;

    fn data_type(_: usize) -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }

    fn builder(_: usize) -> TimestampMicrosecondBuilder {
        TimestampMicrosecondBuilder::new().with_timezone("UTC")
    }

    fn push(value: Option<&Self>, builder: &mut TimestampMicrosecondBuilder) {
        builder.append_option(value.map(|time| time.0));
    }

    fn read(column: &dyn Array, row: usize) -> Option<Self> {
        number::<TimestampMicrosecondType>(column, row).map(Self)
    }
}

/// An item of a list with one value a patch.
pub trait Item: Copy + Default {
    /// Collects the items of all rows.
    type Builder: Debug + Default + Send + 'static;
    /// The items' type.
    const TYPE: DataType;

    /// Adds the items of a row.
    fn append(items: &[Self], builder: &mut Self::Builder);

    /// The items of all rows.
    fn finish(builder: &mut Self::Builder) -> ArrayRef;

    /// The items of a row.
    fn read(items: &dyn Array) -> Option<Vec<Self>>;
}

impl Item for bool {
    type Builder = BooleanBuilder;
    const TYPE: DataType = DataType::Boolean;

    fn append(items: &[Self], builder: &mut BooleanBuilder) {
        builder.append_slice(items);
    }

    fn finish(builder: &mut BooleanBuilder) -> ArrayRef {
        Arc::new(builder.finish())
    }

    fn read(items: &dyn Array) -> Option<Vec<Self>> {
        Some(items.as_boolean_opt()?.values().iter().collect())
    }
}

impl Item for f32 {
    type Builder = Float32Builder;
    const TYPE: DataType = DataType::Float32;

    fn append(items: &[Self], builder: &mut Float32Builder) {
        builder.append_slice(items);
    }

    fn finish(builder: &mut Float32Builder) -> ArrayRef {
        Arc::new(builder.finish())
    }

    fn read(items: &dyn Array) -> Option<Vec<Self>> {
        Some(items.as_primitive_opt::<Float32Type>()?.values().to_vec())
    }
}

/// A column of lists of one length.
#[derive(Debug)]
pub struct ListBuilder<I: Item> {
    item: FieldRef,
    len: usize,
    items: I::Builder,
    valid: NullBufferBuilder,
}

fn item_field<I: Item>() -> FieldRef {
    Arc::new(Field::new("item", I::TYPE, false))
}

fn list_size(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

impl<I: Item + Debug> ColumnBuilder for ListBuilder<I> {
    fn finish(&mut self, num_rows: usize) -> Result<ArrayRef, ArrowError> {
        let (items, valid) = (I::finish(&mut self.items), self.valid.finish());
        let (item, len) = (Arc::clone(&self.item), list_size(self.len));
        Ok(Arc::new(FixedSizeListArray::try_new_with_length(item, len, items, valid, num_rows)?))
    }
}

impl<I: Item + Debug + Send + 'static> Value for Vec<I> {
    type Builder = ListBuilder<I>;

    fn data_type(num_patches: usize) -> DataType {
        DataType::FixedSizeList(item_field::<I>(), list_size(num_patches))
    }

    fn builder(num_patches: usize) -> ListBuilder<I> {
        let (items, valid) = (I::Builder::default(), NullBufferBuilder::new(0));
        ListBuilder { item: item_field::<I>(), len: num_patches, items, valid }
    }

    fn push(value: Option<&Self>, builder: &mut ListBuilder<I>) {
        match value {
            Some(items) => {
                I::append(items, &mut builder.items);
                builder.valid.append_non_null();
            }
            None => {
                // Items are not nullable, so an absent list still holds zeros under its null bit.
                I::append(&vec![I::default(); builder.len], &mut builder.items);
                builder.valid.append_null();
            }
        }
    }

    fn read(column: &dyn Array, row: usize) -> Option<Self> {
        let lists = column.as_fixed_size_list_opt()?;
        if lists.is_null(row) { None } else { I::read(lists.value(row).as_ref()) }
    }

    fn heap_bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }

    fn list_bytes(num_patches: usize) -> usize {
        num_patches.saturating_mul(size_of::<I>())
    }

    fn list_len(&self) -> Option<usize> {
        Some(self.len())
    }
}

impl<V: Value> Value for Option<V> {
    type Builder = V::Builder;
    const IS_NULLABLE: bool = true;

    fn data_type(num_patches: usize) -> DataType {
        V::data_type(num_patches)
    }

    fn builder(num_patches: usize) -> V::Builder {
        V::builder(num_patches)
    }

    fn push(value: Option<&Self>, builder: &mut V::Builder) {
        V::push(value.and_then(Option::as_ref), builder);
    }

    fn read(column: &dyn Array, row: usize) -> Option<Self> {
        Some(V::read(column, row))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, Value::heap_bytes)
    }

    fn list_bytes(num_patches: usize) -> usize {
        V::list_bytes(num_patches)
    }

    fn list_len(&self) -> Option<usize> {
        self.as_ref().and_then(Value::list_len)
    }
}
