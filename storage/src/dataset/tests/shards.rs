//! How Parquet files are found and which can be opened: names, places, numbers, compressions, sizes.

use super::layouts::{Made, has_note, two_splits};
use super::*;

#[test]
fn parquet_files_are_found_in_every_usual_place() {
    for (train, test) in [
        (&["train.parquet"][..], "test.parquet"),
        (&["Train.parquet"], "TEST.parquet"),
        (&["training.parquet"], "testing.parquet"),
        (&["train.parquet"], "dev.parquet"),
        (&["train.parquet"], "eval.parquet"),
        (&["default/train/0000.parquet", "default/train/00001.parquet"], "default/test/0000.parquet"),
        (&["train/0000.parquet"], "test/0000.parquet"),
        (&["NAME/train/0000.parquet"], "NAME/validation/0000.parquet"),
        (&["data/train/0.parquet"], "data/test/0.parquet"),
        (
            &["CONFIG/train-00000-of-00002.parquet", "CONFIG/train-00001-of-00002.parquet"],
            "CONFIG/test-00000-of-00001.parquet",
        ),
        (&["data/CONFIG/train-00000-of-00001.parquet"], "data/CONFIG/test-00000-of-00001.parquet"),
        (&["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"], "test-00001-of-00001.parquet"),
        (&["train-00000-of-00001-0123456789abcdef.parquet"], "test-00000-of-00001-fedcba9876543210.parquet"),
        (&["train_0.parquet", "train_1.parquet"], "test_0.parquet"),
        (&["train-0.parquet"], "test-0.parquet"),
        (&["train.0.parquet"], "test.0.parquet"),
        (&["train.parquet/part-00000-1b2c-c000.snappy.parquet"], "test.parquet/part-00000-9f-c000.snappy.parquet"),
        (&["cifar10-train.parquet"], "cifar10-test.parquet"),
        (&["A/B/C/train/0000.parquet"], "A/B/C/test/0000.parquet"),
    ] {
        let made = Made::new(train);
        for path in
            [test, "README.md", "_SUCCESS", ".train.parquet.crc", "_metadata", ".cache/x.parquet", "._train.parquet"]
        {
            made.add(path);
        }
        assert_eq!(made.read(Split::Train), train.iter().map(|path| path.len()).collect::<Vec<_>>(), "{train:?}");
        assert_eq!(made.read(Split::Test), [test.len()], "{test}");
        let is_plain = !train[0].starts_with("cifar10");
        assert_eq!(made.open(Split::Train).notes().is_empty(), is_plain, "{:?}", made.open(Split::Train).notes());
    }
    // The folder of one split alone.
    let made = Made::new(&["NAME/train/0000.parquet"]);
    let spec = DatasetSpec::new(FormatName::AUTO, Some(made.path("NAME/train")), Split::Train);
    assert_eq!(open(&spec).unwrap().len(), 2);
}

#[test]
fn images_with_parquet_files_of_facts_beside_them_are_images() {
    let made = two_splits("train", "test");
    for path in ["metadata.parquet", "train/metadata.parquet", "test/0000.parquet"] {
        made.add(path);
    }
    assert_eq!(made.open(Split::Train).info().format, "image-folder");
    let made = Made::new(&["default/train/0000.parquet", "assets/banner.png", "docs/a.png", "docs/b.png"]);
    assert_eq!(open(&DatasetSpec { format: HfParquet::NAME, ..made.spec(Split::Train) }).unwrap().len(), 2);
    let made = Made::new(&["train/0000.parquet", "assets/banner.png", "docs/a.png"]);
    assert_eq!(made.open(Split::Train).info().format, "hf-parquet");
    // What is named otherwise is no split of `train`.
    let made = Made::new(&["train.parquet", "model_eval.parquet"]);
    assert!(matches!(made.error(Split::Test), DataError::NoSplit { .. }));
    assert!(matches!(Made::new(&["x.parquet"]).error(Split::Train), DataError::NoSplit { .. }));
}

#[test]
fn a_split_whose_name_begins_like_another_is_left_out() {
    let made = Made::new(&["train.parquet", "train_noisy.parquet", "test.parquet", "x.parquet"]);
    assert_eq!(made.read(Split::Train), [13]);
    let train = made.open(Split::Train);
    assert!(
        has_note(&*train, "parquet files of other splits left out: 1 (train_noisy.parquet)"),
        "{:?}",
        train.notes()
    );
    assert!(has_note(&*train, "whose names say no split left out: 1 (x.parquet)"), "{:?}", train.notes());
    let made = Made::new(&["train-00000-of-00001.parquet", "train_noisy-00000-of-00001.parquet"]);
    assert_eq!(made.read(Split::Train), [28]);
    // Where nothing else is the split, it is taken, and said.
    let made = Made::new(&["train_noisy.parquet", "test.parquet"]);
    assert_eq!(made.read(Split::Train), [19]);
    assert!(has_note(
        &*made.open(Split::Train),
        "taken for the train split, for which nothing else is named: 1 (train_noisy.parquet)"
    ));
}

#[test]
fn several_sets_of_files_for_one_split_are_refused_by_name() {
    for paths in [
        &["train.parquet", "train-00000-of-00001.parquet"][..],
        &["train.parquet", "train_noisy.parquet", "train-00000-of-00001.parquet"],
        &["train.parquet", "Train.parquet"],
        &["train.parquet", "training.parquet"],
        &["train.parquet", "data/train.parquet"],
        &["train.parquet", "train/0000.parquet"],
        &["train.parquet", "train_0.parquet"],
        &["train_0.parquet", "train-0.parquet"],
        &["train_a.parquet", "train_b.parquet"],
        &["train/0000.parquet", "Train/0000.parquet"],
        &["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        &["train-00000-of-00001-00000000aa.parquet", "train-00000-of-00001-00000000bb.parquet"],
    ] {
        let made = Made::new(paths);
        let error = made.error(Split::Train);
        let text = error.to_string();
        assert!(
            text.contains("several files or folders for the train split") && text.contains("data.exclude"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 65, "{text}");
    }
    let made = Made::new(&["fine/train-00000-of-00001.parquet", "coarse/train-00000-of-00001.parquet"]);
    let error = made.error(Split::Train);
    assert!(error.to_string().ends_with("choose data.path from them: coarse, fine"), "{error}");
    let spec = DatasetSpec { exclude: vec!["coarse".to_owned()], ..made.spec(Split::Train) };
    assert_eq!(open(&spec).unwrap().len(), 2);
    let spec = DatasetSpec::new(FormatName::AUTO, Some(made.path("fine")), Split::Train);
    assert_eq!(open(&spec).unwrap().len(), 2);
    let error = Made::new(&["train/test-00000-of-00001.parquet"]).error(Split::Train);
    assert!(error.to_string().ends_with("lies in a folder train, but its name says test"), "{error}");
}

#[test]
fn missing_shards_are_refused_and_gaps_told() {
    for (paths, absent) in [
        (&["train-00000-of-00002.parquet"][..], "but there are 1; absent: 1"),
        (&["train-00001-of-00002.parquet"], "but there are 1; absent: 0"),
        (&["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "but there are 2; absent: 1"),
        (&["train-00000-of-00002.parquet", "train-00002-of-00002.parquet"], "but there are 2; absent: 1"),
        (&["train/train-00000-of-00002.parquet"], "but there are 1; absent: 1"),
        (&["train-1-of-3.parquet", "train-3-of-3.parquet"], "but there are 2; absent: 2"),
    ] {
        let error = Made::new(paths).error(Split::Train);
        assert!(error.to_string().ends_with(absent) && error.exit_code() == 65, "{error}");
    }
    let made = Made::new(&["train-00000-of-00002.parquet", "train-00001-of-00002.parquet.incomplete"]);
    assert!(made.error(Split::Train).to_string().contains("absent: 1"));
    let made = Made::new(&["train_0.parquet", "train_3.parquet", "train_4.parquet.crdownload"]);
    let train = made.open(Split::Train);
    assert!(has_note(&*train, "numbers absent among the files of the train split: 1, 2"), "{:?}", train.notes());
    assert!(has_note(&*train, "unfinished downloads left out: 1 (train_4.parquet.crdownload)"), "{:?}", train.notes());
    let made = Made::new(&[]);
    std::fs::write(made.path("train.parquet"), b"").unwrap();
    let error = made.error(Split::Train);
    assert!(
        error.to_string().contains("train.parquet: not a readable parquet file") && error.exit_code() == 65,
        "{error}"
    );
}

/// Writes one column of images with a compression.
fn write_images(path: &Path, images: arrow::array::ArrayRef, compression: parquet::basic::Compression) {
    use arrow::array::RecordBatch;
    let batch = RecordBatch::try_from_iter([("image", images)]).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_page_size_limit(1 << 30)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn brotli_pages_are_read_and_lzo_is_refused_by_name() {
    use arrow::array::{ArrayRef, BinaryArray};
    use parquet::basic::{BrotliLevel, Compression};
    let made = Made::new(&[]);
    let png = std::fs::read(fixture("images/rgb.png")).unwrap();
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values([&png; 5]));
    let path = made.path("train.parquet");
    write_images(&path, images.clone(), Compression::BROTLI(BrotliLevel::default()));
    let dataset = made.open(Split::Train);
    assert_eq!(dataset.len(), 5);
    assert!(dataset.sample(4).unwrap().image.pixels == golden());

    // The codec is a number of the footer: where gzip's and snappy's footers differ, LZO's differs in the same byte.
    write_images(&path, images.clone(), Compression::SNAPPY);
    let mut bytes = std::fs::read(&path).unwrap();
    // Field 4 of the column's metadata (codec), an i32 of 1 (snappy) in zigzag, after the end of the list of names in
    // field 3.
    let at = bytes.windows(9).rposition(|nine| nine == b"\x05image\x15\x02\x16").unwrap();
    bytes[at + 7] = 6;
    std::fs::write(&path, bytes).unwrap();
    let error = made.error(Split::Train);
    let expected = "the compression of column image must be none, snappy, gzip, brotli, lz4, lz4_raw or zstd, not lzo";
    assert!(error.to_string().ends_with(expected) && error.exit_code() == 65, "{error}");
}

#[test]
fn a_batch_of_more_than_two_gibibytes_is_read_without_holding_them() {
    use arrow::array::{ArrayRef, BinaryArray, DictionaryArray, Int32Array};
    use arrow::datatypes::Int32Type;
    const LEN: usize = 22 << 18;
    const ROWS: usize = 600;
    assert!(ROWS * LEN > i32::MAX as usize, "more than 32-bit offsets reach, in one batch");
    let made = Made::new(&[]);
    let mut png = std::fs::read(fixture("images/rgb.png")).unwrap();
    // What follows an image's end is no part of it.
    png.resize(LEN, 0x5a);
    let values: ArrayRef = Arc::new(BinaryArray::from_iter_values([&png]));
    let images: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(vec![0; ROWS]), values));
    let path = made.path("train.parquet");
    write_images(&path, images, parquet::basic::Compression::UNCOMPRESSED);
    assert!(path.metadata().unwrap().len() < 2 * LEN as u64, "the image is stored once");
    let file = std::fs::read(&path).unwrap();
    assert!(file.len() < 2 * LEN);
    let dataset = made.open(Split::Train);
    assert_eq!(dataset.len(), ROWS);
    assert!(dataset.sample(ROWS - 1).unwrap().image.pixels == golden());
}
