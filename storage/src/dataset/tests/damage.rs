use super::super::formats::cifar::pickle::Pickle;
use super::*;

/// Positions at which a file of `len` bytes is cut: the first and last ones, and many between.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let step = (len / 97).max(1);
    (0..len).filter(move |at| *at < 40 || len - at < 40 || at % step == 0)
}

#[test]
fn truncated_files_are_refused_by_every_reader() {
    for (name, format, ..) in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(name);
        copy_folder(&fixture(name), &root);
        let spec = spec(&root, format, Split::Train);
        for file in files_below(&root) {
            let file_name = file.file_name().unwrap().to_string_lossy().into_owned();
            let is_other_split = file_name.starts_with("t") && !file_name.starts_with("train")
                || file.to_string_lossy().contains("/test/");
            // Text has no end of its own, and the other split's files are not read.
            if is_other_split || file_name.starts_with("validation") || file_name.ends_with(".txt") {
                continue;
            }
            let whole = std::fs::read(&file).unwrap();
            for cut in cuts(whole.len()) {
                std::fs::write(&file, &whole[..cut]).unwrap();
                let error = first_error(&spec);
                let error = error
                    .unwrap_or_else(|| panic!("{name}/{file_name} cut to {cut} of {} bytes was accepted", whole.len()))
                    .to_string();
                assert!(
                    error.contains(&file_name) && !error.contains('\n'),
                    "{name}/{file_name} cut to {cut}: {error}"
                );
            }
            std::fs::write(&file, &whole).unwrap();
        }
        assert!(first_error(&spec).is_none(), "{name}");
    }
}

#[test]
fn no_altered_label_of_a_page_with_a_checksum_goes_unseen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.parquet");
    let whole = std::fs::read(fixture("hf-page-checksums").join("train.parquet")).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let dataset = open(&spec(folder.path(), HfParquet::NAME, Split::Train))?;
        (0..dataset.len()).map(|index| dataset.label(index)).collect::<Result<Vec<_>, _>>()
    };
    let labels: Vec<_> = (0..12).map(|i| Some(i % 3)).collect();
    assert_eq!(read(&whole).unwrap(), labels);
    // They stand uncompressed in the file.
    let values: Vec<u8> = (0..12_i64).flat_map(|i| (i % 3).to_le_bytes()).collect();
    let start = whole.windows(values.len()).position(|window| window == values).unwrap();
    for at in start..start + values.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x01;
        let error = read(&damaged).expect_err("the checksum does not fit");
        assert!(error.to_string().contains("train.parquet") && error.exit_code() == 65, "byte {at}: {error}");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for (name, format, ..) in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(name);
        copy_folder(&fixture(name), &root);
        let mut spec = spec(&root, format, Split::Train);
        spec.limits.max_pixels = 1 << 16;
        for file in files_below(&root) {
            let whole = std::fs::read(&file).unwrap();
            for at in cuts(whole.len()) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x41;
                std::fs::write(&file, &damaged).unwrap();
                if let Some(error) = first_error(&spec) {
                    assert!(!error.to_string().is_empty());
                }
            }
            std::fs::write(&file, &whole).unwrap();
        }
        assert!(first_error(&spec).is_none(), "{name}");
    }
}

#[test]
fn evil_pickles_are_refused_by_name_and_execute_nothing() {
    let marker = Path::new("/tmp/mlomae-pickle-executed");
    for protocol in 0..5 {
        let bytes = std::fs::read(fixture(&format!("evil/protocol-{protocol}"))).unwrap();
        let reason = Pickle::load(&bytes).err().unwrap();
        assert!(reason.contains("not \"posix.system\""), "{reason}");
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixture("cifar10-py3/cifar-10-batches-py"), folder.path());
        std::fs::write(folder.path().join("data_batch_3"), bytes).unwrap();
        let error = open(&spec(folder.path(), FormatName::AUTO, Split::Train)).err().unwrap();
        assert!(error.to_string().contains("data_batch_3: a pickle may only name"), "{error}");
        assert_eq!(error.exit_code(), 65);
    }
    assert!(!marker.exists());
}

#[test]
fn pickles_cannot_exhaust_memory_or_call_what_they_may_name() {
    let refused = |bytes: &[u8]| Pickle::load(bytes).err().unwrap_or_else(|| panic!("{bytes:02x?}"));
    // One text, encoded again and again.
    let mut bytes =
        b"\x80\x02c_codecs\nencode\nq\x00X\x10\x00\x00\x00aaaaaaaaaaaaaaaaq\x01X\x06\x00\x00\x00latin1q\x02".to_vec();
    for _ in 0..100 {
        bytes.extend(b"h\x00h\x01h\x02\x86R0");
    }
    bytes.extend(b"N.");
    assert!(refused(&bytes).contains("encodes more bytes than the pickle has"));
    assert!(refused(b"\x80\x02cnumpy\nndarray\n)R.").contains("refused call"));
    assert!(refused(b"Nr\xff\xff\xff\xff.").contains("unbelievable memo number"));
    assert!(refused(b"\x80\x05N.").contains("pickle protocol must be 0 to 4, not 5"));
    assert!(refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.").contains("truncated"));
    for bytes in [
        &b"."[..],
        b"N0.",
        b"(.",
        b"t.",
        b"N(0.",
        b"s.",
        b"Nb.",
        b"R.",
        b"\x85.",
        b"I1x\n.",
        b"S'a\n.",
        b"V\\ud800\n.",
        b"Nq",
        b"h\x05.",
        b"]Na(e",
    ] {
        refused(bytes);
    }
    let pickle = Pickle::load(b"(lp0\nI-5\naL7L\naS'a\\x41\\n'\naV\\u00e9\naF1.5\naI01\na.").unwrap();
    let items: Vec<_> = pickle.list(pickle.root()).unwrap().cloned().collect();
    use super::super::formats::cifar::pickle::Value::{Bool, Bytes, Float, Int, Str};
    assert_eq!(items, [Int(-5), Int(7), Bytes(b"aA\n".to_vec()), Str("é".to_owned()), Float(1.5), Bool(true)]);
}

#[test]
fn wrong_shapes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let read_error = |format| first_error(&spec(root, format, Split::Train)).unwrap().to_string();

    copy_folder(&fixture("cifar10-bin"), root);
    let batch = std::fs::read(root.join("data_batch_2.bin")).unwrap();
    std::fs::write(root.join("data_batch_2.bin"), [&batch[..], &batch[..5]].concat()).unwrap();
    let error = read_error(CifarBin::NAME);
    assert!(
        error.ends_with("data_batch_2.bin: sample 3: truncated: a record has 3073 bytes, the last one 5"),
        "{error}"
    );
    std::fs::write(root.join("data_batch_2.bin"), [&[200], &batch[1..]].concat()).unwrap();
    let error = read_error(CifarBin::NAME);
    assert!(error.ends_with("data_batch_2.bin: sample 2: label must be 0 to 9, not 200"), "{error}");
    std::fs::remove_file(root.join("data_batch_2.bin")).unwrap();
    let error = open(&spec(root, CifarBin::NAME, Split::Train)).err().unwrap();
    assert!(error.to_string().ends_with("the train split is incomplete, absent: data_batch_2.bin"), "{error}");
    assert_eq!(error.exit_code(), 65, "an incomplete split is not an absent one");

    copy_folder(&fixture("cifar10-py2/cifar-10-batches-py"), root);
    let file = root.join("data_batch_1");
    let whole = std::fs::read(&file).unwrap();
    // The shape (2, 3072) becomes (4, 1536): as many values, but no image.
    let at = whole.windows(5).position(|part| part == [b'K', 2, b'M', 0, 12]).unwrap();
    let mut wrong = whole.clone();
    wrong[at..at + 5].copy_from_slice(&[b'K', 4, b'M', 0, 6]);
    std::fs::write(&file, &wrong).unwrap();
    assert!(read_error(CifarPickle::NAME).ends_with("data_batch_1: data must have shape [n, 3072], not [4, 1536]"));
    wrong[at + 1] = 3;
    std::fs::write(&file, &wrong).unwrap();
    assert!(read_error(CifarPickle::NAME).contains("array of shape [3, 1536] has 6144 values"));

    copy_folder(&fixture("idx-plain"), root);
    let images = root.join("train-images-idx3-ubyte");
    let whole = std::fs::read(&images).unwrap();
    let with = |at: usize, value: u8| {
        let mut changed = whole.clone();
        changed[at] = value;
        std::fs::write(&images, changed).unwrap();
        read_error(Idx::NAME)
    };
    assert!(with(2, 0x0D).contains("must be of type 0x08 (u8), not 0x0d"));
    assert!(with(3, 1).contains("more than the 3 values") || with(3, 1).contains("must have shape"));
    assert!(with(7, 9).contains("sample 3: truncated"));
    assert!(with(7, 2).contains("more than the"));
    assert!(with(4, 0xFF).contains("unbelievable shape") || with(4, 0xFF).contains("truncated"));
    std::fs::write(&images, &whole).unwrap();
    std::fs::copy(root.join("t10k-labels-idx1-ubyte"), root.join("train-labels-idx1-ubyte")).unwrap();
    assert!(read_error(Idx::NAME).contains("1 labels, but"));
}

#[test]
fn parquet_labels_beyond_the_classes_and_missing_shards_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("hf-snappy"), folder.path());
    std::fs::remove_file(folder.path().join("data/train-00001-of-00002.parquet")).unwrap();
    let error = first_error(&spec(folder.path(), FormatName::AUTO, Split::Train)).unwrap().to_string();
    assert!(error.ends_with("is one of 2 files by its name, but there are 1; absent: 1"), "{error}");
    let mut spec = spec(&fixture("hf-zstd"), FormatName::AUTO, Split::Train);
    spec.label_column = Some("missing".to_owned());
    let error = first_error(&spec).unwrap().to_string();
    assert!(error.ends_with("choose data.label_column from: fine_label (int64), coarse_label (int64)"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    let secret = folder.path().join("secret");
    copy_folder(&fixture("image-folder"), &root);
    copy_folder(&fixture("image-folder/train/ant"), &secret);
    let spec = spec(&root, FormatName::AUTO, Split::Train);
    for (link, target) in [("train/ant/z.png", "secret/0.png"), ("train/wasp", "secret"), ("train/ant/deep", "secret")]
    {
        symlink(folder.path().join(target), root.join(link)).unwrap();
        let error = open(&spec).err().unwrap();
        assert!(matches!(error, DataError::Escape { .. }) && error.to_string().contains(link), "{error}");
        std::fs::remove_file(root.join(link)).unwrap();
    }
    // Links to images inside are followed, those to folders are not: one to the split would lead to the other classes.
    // A file that turns into a link after opening is refused when it is read.
    symlink(root.join("train/bee/1.png"), root.join("train/ant/y.png")).unwrap();
    symlink(root.join("train/ant"), root.join("train/ant/circle")).unwrap();
    symlink(root.join("train"), root.join("train/ant/up")).unwrap();
    let dataset = open(&spec).unwrap();
    assert_eq!(dataset.len(), 5);
    let notes = dataset.notes();
    let links = "links to folders not followed in the train split: 2 (train/ant/circle, train/ant/up)";
    assert!(notes.len() == 2 && notes[0] == links, "{notes:?}");
    std::fs::remove_file(root.join("train/ant/0.png")).unwrap();
    symlink(secret.join("0.png"), root.join("train/ant/0.png")).unwrap();
    assert!(matches!(dataset.sample(0), Err(DataError::Escape { .. })));
    // A folder without images is no class, and noted.
    std::fs::create_dir(root.join("train/cow")).unwrap();
    std::fs::remove_file(root.join("train/ant/0.png")).unwrap();
    let dataset = open(&spec).unwrap();
    assert_eq!(dataset.info().class_names, ["ant", "bee"]);
    assert_eq!(dataset.notes()[0], "folders without images, no classes: 1 (train/cow)");
}

#[test]
fn what_an_image_folder_passes_over_is_told_and_a_class_of_the_test_split_alone_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy_folder(&fixture("image-folder"), root);
    for name in ["a.webm", "b.txt", "c.csv", "d.json", ".hidden"] {
        std::fs::write(root.join("train/ant").join(name), b"?").unwrap();
    }
    let notes = open(&spec(root, FormatName::AUTO, Split::Train)).unwrap().notes();
    assert_eq!(notes[0], "hidden or system files and folders skipped: 1 (train/ant/.hidden)");
    let known = "png, jpg, jpeg, jpe, jfif, webp, bmp, tif, tiff, gif";
    let start = format!("files skipped in the train split (not {known}): 5 (train/ant/a.webm, train/ant/b.txt, ");
    assert!(notes.len() == 2 && notes[1].starts_with(&start), "{notes:?}");
    // A class before all others changes the label, but not the class, of what is in the test split.
    copy_folder(&root.join("train/ant"), &root.join("train/aardvark"));
    let align_test = || {
        let train = open(&spec(root, FormatName::AUTO, Split::Train)).unwrap();
        let labels: Vec<_> = (0..train.len()).map(|index| train.label(index).unwrap()).collect();
        align(open(&spec(root, FormatName::AUTO, Split::Test))?, &*train, &labels)
    };
    let test = align_test().unwrap().dataset;
    assert_eq!(test.info().class_names, ["aardvark", "ant", "bee"]);
    assert_ne!(test.label(0).unwrap(), Some(0));
    copy_folder(&root.join("train/ant"), &root.join("test/wasp"));
    let error = align_test().err().unwrap();
    assert!(error.to_string().contains("wasp"), "{error}");
    assert_eq!(error.exit_code(), 65);
}

#[test]
fn a_page_that_announces_too_much_is_refused_before_it_is_unpacked() {
    use arrow::array::{BinaryArray, RecordBatch};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    // More than a MiB, so that its size has as many bytes as one of 128 MiB.
    let images: arrow::array::ArrayRef = std::sync::Arc::new(BinaryArray::from_vec(vec![&[0; 1_200_000][..]]));
    let batch = RecordBatch::try_from_iter([("image", images)]).unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).set_dictionary_enabled(false).build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    let spec = spec(&path, HfParquet::NAME, Split::Train);
    assert_eq!(open(&spec).unwrap().len(), 1, "its page shrinks to a hundredth of a percent, and is small");
    let mut bytes = std::fs::read(&path).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let page = usize::try_from(reader.metadata().row_group(0).column(0).byte_range().0).unwrap();
    // The header: field 1 (type) and its value, field 2 and the size, zigzag, as a varint of 4 bytes.
    assert_eq!((bytes[page], bytes[page + 2], bytes[page + 6] < 0x80, bytes[page + 7]), (0x15, 0x15, true, 0x15));
    bytes[page + 3..page + 7].copy_from_slice(&[0xfe, 0xff, 0xff, 0x7f]);
    std::fs::write(&path, bytes).unwrap();
    let error = open(&spec).err().unwrap();
    assert_eq!(error.exit_code(), 65);
    let error = error.to_string();
    assert!(error.contains("train.parquet") && error.contains("a page of column image of "), "{error}");
    assert!(error.ends_with("bytes announces 134217727 unpacked"), "{error}");
}
