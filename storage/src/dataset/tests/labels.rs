//! Label columns of Parquet files: which one is taken, what of it is refused, and classes over files and splits.

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array,
    LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray, UInt8Array, UInt64Array,
    new_null_array,
};
use arrow::datatypes::{DataType, Int8Type, Int32Type, Int64Type, Schema};

use super::*;

const NAMES: [&str; 3] = ["ant", "bee", "cat"];

/// A folder of Parquet files.
struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A file with an image a row, these columns, and a `ClassLabel` of these names if any.
    fn write(&self, file: &str, columns: Vec<(&str, ArrayRef)>, class_label: Option<(&str, &[&str])>) {
        let metadata = class_label.map(|(column, names)| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            parquet_file::features::metadata(Some(column), &names)
        });
        self.write_with(file, columns, metadata.unwrap_or_default());
    }

    fn write_with(
        &self,
        file: &str,
        mut columns: Vec<(&str, ArrayRef)>,
        metadata: std::collections::HashMap<String, String>,
    ) {
        let num_rows = columns.first().map_or(4, |(_, column)| column.len());
        let png = convert::encode_png(&Image { width: 8, height: 8, channels: 1, pixels: vec![7; 64] }).unwrap();
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..num_rows).map(|_| &png)));
        columns.insert(0, ("image", images));
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let schema = Arc::new(Schema::new_with_metadata(batch.schema().fields().clone(), metadata));
        let batch = batch.with_schema(schema.clone()).unwrap();
        let out = std::fs::File::create(self.0.path().join(file)).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(out, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn spec(&self, split: Split) -> DatasetSpec {
        DatasetSpec::new(HfParquet::NAME, Some(self.0.path().to_owned()), split)
    }

    fn open(&self, split: Split) -> Result<Arc<dyn Dataset>, DataError> {
        open(&self.spec(split))
    }

    fn error(&self) -> String {
        let error = self.open(Split::Train).err().unwrap_or_else(|| panic!("opens"));
        assert_eq!(error.exit_code(), 65, "{error}");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.contains(".parquet"), "{text}");
        text
    }
}

/// One train file of these columns.
fn of(columns: Vec<(&str, ArrayRef)>) -> Made {
    let made = Made::new();
    made.write("train.parquet", columns, None);
    made
}

fn labels(dataset: &dyn Dataset) -> Vec<Option<i32>> {
    (0..dataset.len()).map(|index| dataset.label(index).unwrap()).collect()
}

/// The name of each image's class.
fn named(dataset: &dyn Dataset) -> Vec<String> {
    let names = &dataset.info().class_names;
    labels(dataset).iter().map(|label| label.map_or("-".to_owned(), |label| names[label as usize].clone())).collect()
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn numbers(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn aligned(made: &Made) -> Result<HeldOut, DataError> {
    let (train, test) = (made.open(Split::Train)?, made.open(Split::Test)?);
    align(test, &*train, &labels(&*train))
}

#[test]
fn every_type_of_strings_and_numbers_gives_the_same_classes() {
    let texts = ["cat", "ant", "bee", "ant"];
    let codes = [2, 0, 1, 0];
    let categories: DictionaryArray<Int32Type> = texts.into_iter().collect();
    let numbered =
        DictionaryArray::<Int8Type>::try_new(vec![0, 1, 2, 1].into(), Arc::new(Int64Array::from(vec![2, 0, 1])));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("string", strings(&texts)),
        ("large_string", Arc::new(LargeStringArray::from(texts.to_vec()))),
        ("string_view", Arc::new(StringViewArray::from(texts.to_vec()))),
        ("dictionary<int32, string>", Arc::new(categories)),
        ("int64", numbers(&codes)),
        ("uint8", Arc::new(UInt8Array::from(vec![2, 0, 1, 0]))),
        ("double", Arc::new(Float64Array::from(vec![2.0, 0.0, 1.0, 0.0]))),
        ("dictionary<int8, int64>", Arc::new(numbered.unwrap())),
    ];
    for (kind, column) in columns {
        let is_text = kind.contains("string");
        let dataset = of(vec![("label", column)]).open(Split::Train).unwrap();
        assert_eq!(labels(&*dataset), [2, 0, 1, 0].map(Some), "{kind}");
        assert_eq!(dataset.info().class_names, if is_text { NAMES } else { ["0", "1", "2"] }, "{kind}");
        let origin = dataset.label_origin();
        assert_eq!(origin.column_type.as_deref(), Some(kind));
        assert_eq!(origin.names, if is_text { NameSource::Values } else { NameSource::Numbers }, "{kind}");
    }
    let yes_and_no: ArrayRef = Arc::new(BooleanArray::from(vec![true, false, true, true]));
    assert_eq!(labels(&*of(vec![("label", yes_and_no)]).open(Split::Train).unwrap()), [1, 0, 1, 1].map(Some));
}

#[test]
fn strings_of_digits_are_in_the_order_of_their_numbers() {
    let dataset = of(vec![("label", strings(&["10", "2", "0", "2"]))]).open(Split::Train).unwrap();
    assert_eq!(dataset.info().class_names, ["0", "2", "10"]);
    assert_eq!(named(&*dataset), ["10", "2", "0", "2"]);
}

#[test]
fn absent_values_of_every_type_are_no_labels() {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("a"), None, Some(""), Some("b")])),
        Arc::new(Int64Array::from(vec![Some(0), None, Some(-1), Some(1)])),
        Arc::new(Float64Array::from(vec![Some(0.0), None, Some(f64::NAN), Some(1.0)])),
    ];
    for column in columns {
        let dataset = of(vec![("label", column)]).open(Split::Train).unwrap();
        assert_eq!(labels(&*dataset), [Some(0), None, None, Some(1)]);
        assert_eq!(summary(&*dataset).unwrap().num_unlabelled, 2);
    }
    let nothing = of(vec![("label", new_null_array(&DataType::Null, 4))]).open(Split::Train).unwrap();
    assert_eq!((labels(&*nothing), nothing.info().class_names.len()), (vec![None; 4], 0));
}

#[test]
fn values_that_are_no_classes_are_refused_with_their_row() {
    let refused = |column: ArrayRef, end: &str| {
        let error = of(vec![("label", column)]).error();
        assert!(error.ends_with(end), "{error}");
    };
    refused(Arc::new(Float64Array::from(vec![0.0, 2.5])), "sample 1: label must be a whole number, not 2.5");
    refused(Arc::new(Float64Array::from(vec![0.0, f64::INFINITY])), "label must be a whole number, not inf");
    refused(numbers(&[0, 1, 1 << 40]), "sample 2: label must be -1 to 1048575, not 1099511627776");
    refused(numbers(&[0, -2]), "sample 1: label must be -1 to 1048575, not -2");
    let huge: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    assert!(of(vec![("label", huge)]).error().contains("18446744073709551615"));
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(0)]), Some(vec![Some(1)])]);
    refused(
        Arc::new(list),
        "label column label (list<int64>) cannot be read, labels are one number or string an image; choose \
         data.label_column from: (there is none)",
    );
    let field = Arc::new(arrow::datatypes::Field::new("a", DataType::Int64, true));
    let parts: ArrayRef = Arc::new(StructArray::from(vec![(field, numbers(&[0, 1]))]));
    let error = of(vec![("label", parts), ("kind", strings(&["a", "b"]))]).error();
    assert!(error.contains("(struct) cannot be read") && error.ends_with("from: kind (string)"), "{error}");
    let made = Made::new();
    made.write("train.parquet", vec![("label", strings(&["ant", "dog"]))], Some(("label", &NAMES)));
    let error = made.error();
    assert!(error.ends_with("sample 1: label must be one of \"ant\", \"bee\", \"cat\", not \"dog\""), "{error}");
}

#[test]
fn an_index_or_a_size_is_never_taken_unasked() {
    let few = || numbers(&[0, 1, 0, 1, 0]);
    for name in [
        "__index_level_0__",
        "id",
        "idx",
        "image_id",
        "imageId",
        "width",
        "num_faces",
        "Unnamed: 0",
        "key",
        "img_w",
        "imageWidth",
        "filesize",
        "n_pixels",
        "frame",
    ] {
        let made = of(vec![(name, few())]);
        let error = made.error();
        let end = format!("is an index or a size by its name; choose data.label_column from: {name} (int64)");
        assert!(error.ends_with(&end), "{error}");
        // Asked for, it is taken.
        let dataset = open(&DatasetSpec { label_column: Some(name.to_owned()), ..made.spec(Split::Train) }).unwrap();
        assert_eq!(labels(&*dataset)[1], Some(1));
        // Beside a column that can be meant, it is none.
        let dataset = of(vec![(name, few()), ("fruit", few())]).open(Split::Train).unwrap();
        assert_eq!(dataset.info().label_column.as_deref(), Some("fruit"), "{name}");
        assert!(dataset.notes().iter().any(|note| note.contains("column fruit (int64)")), "taken, but not silently");
        let texts = strings(&["b", "a", "b", "a", "b"]);
        for usual in ["label", "labels", "class", "target", "Label"] {
            let dataset = of(vec![(name, few()), (usual, texts.clone())]).open(Split::Train).unwrap();
            assert_eq!(dataset.info().label_column.as_deref(), Some(usual), "{name}");
        }
    }
    for name in ["class_id", "category_idx", "label_no"] {
        assert!(of(vec![(name, few())]).open(Split::Train).is_ok(), "{name} is an index of classes");
    }
    let error = of(vec![("fruit", numbers(&[5, 3, 4, 1, 0]))]).error();
    assert!(error.contains("fruit (int64) has one value a row in 5 rows, as an index has"), "{error}");
    // pandas says which column is its index.
    let made = Made::new();
    let pandas = [("pandas".to_owned(), r#"{"index_columns": ["fruit"]}"#.to_owned())];
    made.write_with("train.parquet", vec![("fruit", few())], pandas.into_iter().collect());
    assert!(made.error().contains("fruit (int64) is an index or a size"), "{}", made.error());
}

#[test]
fn several_columns_that_can_be_meant_are_listed_with_their_types() {
    let two = || numbers(&[0, 1]);
    for columns in [
        vec![("fine_label", two()), ("coarse_label", two())],
        vec![("class", strings(&["a", "b"])), ("target", two())],
        vec![("a", two()), ("b", two())],
    ] {
        let names: Vec<_> = columns.iter().map(|(name, column)| (*name, column.data_type().clone())).collect();
        let error = of(columns).error();
        assert!(error.contains("several label columns; choose data.label_column from: "), "{error}");
        for (name, kind) in names {
            let kind = if kind == DataType::Int64 { "int64" } else { "string" };
            assert!(error.contains(&format!("{name} ({kind})")), "{error}");
        }
    }
    // A declared class goes before names; a string by another name is none, and said.
    let made = Made::new();
    made.write("train.parquet", vec![("fruit", two()), ("other", two())], Some(("fruit", &NAMES)));
    assert_eq!(made.open(Split::Train).unwrap().info().label_column.as_deref(), Some("fruit"));
    let dataset = of(vec![("species", strings(&["a", "b"]))]).open(Split::Train).unwrap();
    assert_eq!((labels(&*dataset), dataset.info().label_column.clone()), (vec![None; 2], None));
    assert!(dataset.notes()[0].contains("not taken for one: species (string)"), "{:?}", dataset.notes());
    let species: DictionaryArray<Int32Type> = ["b", "a", "b"].into_iter().collect();
    let dataset = of(vec![("species", Arc::new(species)), ("file", strings(&["x", "y", "z"]))]).open(Split::Train);
    assert_eq!(named(&*dataset.unwrap()), ["b", "a", "b"], "categories are classes");
    let made = of(vec![("label", two())]);
    let error = open(&DatasetSpec { label_column: Some("kind".to_owned()), ..made.spec(Split::Train) }).err().unwrap();
    assert!(error.to_string().ends_with("no label column \"kind\"; choose data.label_column from: label (int64)"));
}

#[test]
fn damaged_features_are_refused_and_damaged_hints_passed_over() {
    let with = |key: &str, text: &str| {
        let made = Made::new();
        made.write_with("train.parquet", vec![("label", numbers(&[0, 1]))], [(key.to_owned(), text.to_owned())].into());
        made.open(Split::Train).map(|dataset| dataset.info().class_names.clone())
    };
    for text in [
        r#"{"info": {"features": {"label": {"_type": "Cla"#,
        r#"{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"0": "ant"}}}}}"#,
        r#"{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ant"}}}}"#,
        r#"{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["ant", 3]}}}}"#,
        r#"{"info": {"features": ["label"]}}"#,
        r#"{"info": 3}"#,
        "[]",
    ] {
        let error = with("huggingface", text).err().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(error.exit_code(), 65, "{text}");
    }
    for text in
        ["{}", r#"{"info": {}}"#, r#"{"info": {"features": {"label": {"_type": "ClassLabel", "num_classes": 2}}}}"#]
    {
        assert_eq!(with("huggingface", text).unwrap(), ["0", "1"], "{text}");
    }
    assert_eq!(with("pandas", "{").unwrap(), ["0", "1"]);
}

#[test]
fn shards_are_mapped_by_name_to_the_first_that_lists_names() {
    let texts = || strings(&["bee", "cat", "ant"]);
    type Shard<'a> = (ArrayRef, Option<&'a [&'a str]>);
    let cases: [(&str, Shard<'_>, Shard<'_>); 4] = [
        ("permuted", (numbers(&[1, 2, 0]), Some(&NAMES)), (numbers(&[2, 0, 1]), Some(&["cat", "ant", "bee"]))),
        ("names and strings", (numbers(&[1, 2, 0]), Some(&NAMES)), (texts(), None)),
        ("strings and names", (texts(), None), (numbers(&[1, 2, 0]), Some(&NAMES))),
        ("strings", (texts(), None), (strings(&["bee", "cat", "ant"]), None)),
    ];
    for (what, (first, first_names), (second, second_names)) in cases {
        let made = Made::new();
        made.write("train-00000-of-00002.parquet", vec![("label", first)], first_names.map(|names| ("label", names)));
        made.write("train-00001-of-00002.parquet", vec![("label", second)], second_names.map(|names| ("label", names)));
        let dataset = made.open(Split::Train).unwrap();
        assert_eq!(dataset.info().class_names, NAMES, "{what}");
        assert_eq!(named(&*dataset), ["bee", "cat", "ant", "bee", "cat", "ant"], "{what}");
    }
    for (second, names) in
        [(numbers(&[0, 1]), None), (numbers(&[0, 1]), Some(&["ant", "dog"])), (strings(&["dog"]), None)]
    {
        let made = Made::new();
        made.write("train-00000-of-00002.parquet", vec![("label", numbers(&[1]))], Some(("label", &NAMES)));
        let names = names.map(|names: &[&str; 2]| ("label", names.as_slice()));
        made.write("train-00001-of-00002.parquet", vec![("label", second)], names);
        let error = made.error();
        assert!(error.contains("train-00001") && error.contains("train-00000"), "{error}");
        assert!(error.ends_with("there: \"ant\", \"bee\", \"cat\""), "{error}");
    }
    let made = Made::new();
    made.write("train-00000-of-00002.parquet", vec![("kind", numbers(&[1, 1]))], None);
    made.write("train-00001-of-00002.parquet", vec![("label", numbers(&[1, 1]))], None);
    assert!(made.error().ends_with("its label column is \"label\", that of the first file \"kind\""));
}

#[test]
fn the_test_split_is_mapped_by_name_to_the_train_split() {
    let with = |values: ArrayRef, names: Option<&[&str]>| {
        let made = Made::new();
        made.write("train.parquet", vec![("label", numbers(&[0, 1, 2, 0]))], Some(("label", &NAMES)));
        made.write("test.parquet", vec![("label", values)], names.map(|names| ("label", names)));
        aligned(&made)
    };
    let mapped = |values: ArrayRef, names: Option<&[&str]>| {
        let held_out = with(values, names).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(held_out.dataset.info().class_names, NAMES);
        assert_eq!(held_out.notes, [""; 0]);
        let samples = (0..held_out.dataset.len()).map(|index| held_out.dataset.sample(index).unwrap().label);
        assert_eq!(samples.collect::<Vec<_>>(), labels(&*held_out.dataset), "samples carry the same labels");
        named(&*held_out.dataset)
    };
    assert_eq!(mapped(numbers(&[0, 1, 2]), Some(&["cat", "ant", "bee"])), ["cat", "ant", "bee"]);
    assert_eq!(mapped(numbers(&[0, 1, -1]), Some(&["cat", "bee"])), ["cat", "bee", "-"]);
    assert_eq!(mapped(numbers(&[1, 0]), Some(&["ant", "cat", "dog"])), ["cat", "ant"], "no image is a dog");
    assert_eq!(mapped(strings(&["cat", "ant"]), None), ["cat", "ant"]);
    for (values, names) in [
        (numbers(&[0, 2]), Some(&["ant", "cat", "dog"][..])),
        (numbers(&[0, 1]), Some(&["x", "y", "z"][..])),
        (numbers(&[0, 1]), None),
        (strings(&["ant", "dog"]), None),
    ] {
        let error = with(values, names).err().unwrap_or_else(|| panic!("{names:?} is mapped"));
        let text = error.to_string();
        assert!(text.contains("the test split") && text.ends_with("there: \"ant\", \"bee\", \"cat\""), "{text}");
        assert!(names.is_none_or(|names| names.iter().all(|name| text.contains(name))), "{text}");
        assert_eq!(error.exit_code(), 65);
    }
}

#[test]
fn numbers_beyond_the_train_splits_are_refused_and_gaps_are_told() {
    let with = |train: &[i64], test: &[i64]| {
        let made = Made::new();
        made.write("train.parquet", vec![("label", numbers(train))], None);
        made.write("test.parquet", vec![("label", numbers(test))], None);
        aligned(&made)
    };
    assert_eq!(labels(&*with(&[0, 1, 2, 0], &[1, 0]).unwrap().dataset), [1, 0].map(Some));
    assert!(with(&[0, 1, 1], &[1, 2]).err().unwrap().to_string().contains("there is no class \"2\""));
    let gap = with(&[0, 3, 3, 0], &[3, 1]).unwrap();
    assert!(gap.notes[0].starts_with("1 of 2 labelled images of the test split are of classes without an image"));
    assert!(with(&[0, 3, 3, 0], &[1, 2]).err().unwrap().to_string().contains("no image of any of its classes"));
}

#[test]
fn class_folders_of_the_test_split_are_mapped_by_name() {
    let made = tempfile::tempdir().unwrap();
    let add = |path: &str| {
        let target = made.path().join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(fixture("images/rgb.png"), target).unwrap();
    };
    for path in ["train/ant/0.png", "train/bee/0.png", "train/cat/0.png", "test/cat/0.png", "test/bee/0.png"] {
        add(path);
    }
    let align_test = || {
        let train = open(&spec(made.path(), FormatName::AUTO, Split::Train))?;
        align(open(&spec(made.path(), FormatName::AUTO, Split::Test))?, &*train, &labels(&*train))
    };
    assert_eq!(named(&*align_test().unwrap().dataset), ["bee", "cat"]);
    add("test/wasp/0.png");
    let error = align_test().err().unwrap();
    assert!(error.to_string().contains("wasp"), "{error}");
    assert_eq!(error.exit_code(), 65);
}

#[cfg(unix)]
#[test]
fn class_folders_whose_names_are_no_utf_8_stay_apart() {
    use std::os::unix::ffi::OsStrExt;
    let made = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        for (class, num_images) in [(&b"caf\xe9"[..], 1), (b"caf\xe8", 2)] {
            let folder = made.path().join(split).join(std::ffi::OsStr::from_bytes(class));
            std::fs::create_dir_all(&folder).unwrap();
            for number in 0..num_images {
                std::fs::copy(fixture("images/rgb.png"), folder.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    for split in [Split::Train, Split::Test] {
        let dataset = open(&spec(made.path(), FormatName::AUTO, split)).unwrap();
        assert_eq!(dataset.info().class_names, ["caf\\xe8", "caf\\xe9"]);
        assert_eq!(labels(&*dataset), [0, 0, 1].map(Some));
    }
}

#[test]
fn conversion_keeps_labels_and_names_and_invents_no_nulls() {
    let out = tempfile::tempdir().unwrap();
    let reopened = |folder: &str| {
        let path = out.path().join(folder);
        open(&DatasetSpec::new(HfParquet::NAME, Some(path), Split::Train)).unwrap()
    };
    let column: ArrayRef = Arc::new(StringArray::from(vec![Some("10"), Some("2"), None, Some("2")]));
    let source = of(vec![("label", column)]).open(Split::Train).unwrap();
    let report = convert(&*source, &out.path().join("a"), &mut |_, _| {}).unwrap();
    assert_eq!((report.num_samples, report.num_unlabelled, report.label_column.as_deref()), (4, 1, Some("label")));
    assert_eq!(named(&*reopened("a")), ["10", "2", "-", "2"]);
    assert_eq!(reopened("a").info().class_names, ["2", "10"]);
    // What was not understood does not become a column of nulls.
    let source = of(vec![("species", strings(&["a", "b"]))]).open(Split::Train).unwrap();
    let report = convert(&*source, &out.path().join("b"), &mut |_, _| {}).unwrap();
    assert_eq!((report.num_unlabelled, report.label_column), (2, None));
    let dataset = reopened("b");
    assert_eq!((dataset.info().label_column.clone(), dataset.label_origin().not_taken.len()), (None, 0));
}

#[test]
fn a_validation_split_can_be_opened_where_there_is_one() {
    let made = Made::new();
    for (file, label) in [("train.parquet", 0), ("test.parquet", 1), ("validation.parquet", 2)] {
        made.write(file, vec![("label", numbers(&[label, label]))], None);
    }
    let opened = made.open(Split::Validation).unwrap();
    assert_eq!((opened.info().split.as_str(), labels(&*opened)[0]), ("validation", Some(2)));
    assert!(is_validation(&opened.info().split));
    assert_eq!(labels(&*made.open(Split::Test).unwrap())[0], Some(1));
    std::fs::remove_file(made.0.path().join("test.parquet")).unwrap();
    assert_eq!(made.open(Split::Test).unwrap().info().split, "validation", "it stands in");
    for (name, format) in
        [("cifar10-bin", CifarBin::NAME), ("idx-plain", Idx::NAME), ("cifar10-py3", CifarPickle::NAME)]
    {
        let error = open(&spec(&fixture(name), format, Split::Validation)).err().unwrap();
        assert!(matches!(error, DataError::NoSplit { .. }), "{name}: {error}");
    }
    for format in [FormatName::EMBEDDED, Synthetic::NAME] {
        let error = open(&DatasetSpec::new(format, None, Split::Validation)).err().unwrap();
        assert_eq!(error.exit_code(), 66, "{error}");
    }
}

/// Int32 keys are what pandas writes for categories of numbers.
#[test]
fn categories_of_numbers_and_of_declared_names_agree() {
    let keys = Int32Array::from(vec![Some(1), Some(0), None]);
    let values: ArrayRef = strings(&["cat", "ant"]);
    let column: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap());
    let made = Made::new();
    made.write("train.parquet", vec![("label", column)], Some(("label", &NAMES)));
    let dataset = made.open(Split::Train).unwrap();
    assert_eq!((named(&*dataset), dataset.info().class_names.len()), (vec!["ant".into(), "cat".into(), "-".into()], 3));
}
