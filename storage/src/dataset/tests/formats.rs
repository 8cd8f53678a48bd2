use super::*;

#[test]
fn golden_image_is_identical_through_every_reader() {
    let rgb = golden();
    let green: Vec<u8> = rgb.iter().skip(1).step_by(3).copied().collect();
    for (name, format, num_samples, label) in FIXTURES {
        let dataset = open_fixture(name, Split::Train);
        let info = dataset.info();
        assert_eq!(
            (info.format.as_str(), info.num_samples, dataset.len()),
            (format.as_str(), num_samples, num_samples),
            "{name}"
        );
        let sample = dataset.sample(1).unwrap();
        assert_eq!((sample.id, sample.label, dataset.label(1).unwrap()), (1, label, label), "{name}");
        assert_eq!((sample.image.width, sample.image.height, sample.image.channels), (32, 32, info.channels), "{name}");
        assert_eq!(info.image_size, Some((32, 32)), "{name}");
        assert!(sample.image.pixels == if info.channels == 3 { &rgb[..] } else { &green[..] }, "{name}");
    }
}

#[test]
fn detected_and_named_formats_give_the_same() {
    for (name, format, ..) in FIXTURES {
        let path = fixture(name);
        for split in [Split::Train, Split::Test] {
            let (auto, named) = (open(&spec(&path, FormatName::AUTO, split)), open(&spec(&path, format, split)));
            if name == "hf-grey" && split == Split::Test {
                assert!(auto.err().unwrap().to_string().contains("found train.parquet"));
                continue;
            }
            let (auto, named) = (auto.unwrap(), named.unwrap());
            assert_eq!(auto.info(), named.info());
            for index in 0..auto.len() {
                assert_eq!(auto.sample(index).unwrap(), named.sample(index).unwrap());
            }
            assert!(matches!(auto.sample(auto.len()), Err(DataError::OutOfRange { .. })));
            assert!(matches!(auto.label(usize::MAX), Err(DataError::OutOfRange { .. })));
        }
    }
}

#[test]
fn classes_and_splits_have_their_names() {
    for name in ["cifar10-py2", "cifar10-py3", "cifar10-bin", "hf-snappy"] {
        let train = open_fixture(name, Split::Train);
        assert_eq!(train.info().class_names.len(), 10, "{name}");
        assert_eq!(train.info().class_names[7], "horse", "{name}");
        assert_eq!(train.info().label_column.as_deref(), Some("label"), "{name}");
        let test = open_fixture(name, Split::Test);
        assert_eq!((test.len(), test.label(0).unwrap(), test.info().split.as_str()), (1, Some(9), "test"), "{name}");
    }
    for name in ["cifar100-protocol0", "cifar100-protocol4", "cifar100-bin"] {
        let mut spec = spec(&fixture(name), FormatName::AUTO, Split::Train);
        assert_eq!(open(&spec).unwrap().info().class_names[42], "fine_42", "{name}");
        spec.label_column = Some("coarse_label".to_owned());
        let coarse = open(&spec).unwrap();
        assert_eq!((coarse.label(1).unwrap(), coarse.info().class_names[8].as_str()), (Some(8), "coarse_8"), "{name}");
        spec.label_column = Some("label".to_owned());
        assert!(
            open(&spec).err().unwrap().to_string().ends_with("choose data.label_column from: fine_label, coarse_label"),
            "{name}"
        );
    }
    // Ten classes by the training split's largest label is 4, the test split's 2.
    assert_eq!(open_fixture("idx-gz", Split::Test).info().class_names, ["0", "1", "2", "3", "4"]);
    assert_eq!(open_fixture("hf-zstd", Split::Test).info().split, "validation");
    let folder = open_fixture("image-folder", Split::Train);
    assert_eq!(folder.info().class_names, ["ant", "bee"]);
    assert_eq!((0..4).map(|i| folder.label(i).unwrap().unwrap()).collect::<Vec<_>>(), [0, 0, 1, 1]);
}

#[test]
fn parquet_labels_may_be_absent_and_several() {
    let dataset = open_fixture("hf-snappy", Split::Train);
    let labels: Vec<_> = (0..4).map(|i| dataset.label(i).unwrap()).collect();
    assert_eq!(labels, [Some(3), Some(7), None, None], "-1 and null are no labels; the second file's row has id 3");
    assert_eq!(dataset.sample(3).unwrap().id, 3);

    let mut spec = DatasetSpec::new(HfParquet::NAME, Some(fixture("hf-zstd")), Split::Train);
    let message = open(&spec).err().unwrap().to_string();
    assert!(
        message.ends_with(
            "several label columns; choose data.label_column from: fine_label (int64), coarse_label (int64)"
        ),
        "{message}"
    );
    spec.label_column = Some("coarse_label".to_owned());
    assert_eq!(open(&spec).unwrap().label(1).unwrap(), Some(8));
    spec.image_column = Some("picture".to_owned());
    let message = open(&spec).err().unwrap().to_string();
    assert!(message.ends_with("no image column \"picture\"; choose data.image_column from: img"), "{message}");

    // Without metadata the classes are numbers, and a null image is an error of its sample alone.
    let plain = open_fixture("hf-plain", Split::Train);
    assert_eq!(plain.info().class_names, ["0", "1", "2"]);
    assert!(plain.sample(1).is_ok());
    assert!(plain.sample(2).unwrap_err().to_string().contains("train.parquet: sample 2: "));
}

#[test]
fn single_files_and_splits() {
    let file = fixture("hf-snappy/data/train-00001-of-00002.parquet");
    assert_eq!(open(&spec(&file, FormatName::AUTO, Split::Train)).unwrap().len(), 1);
    let error = open(&spec(&file, FormatName::AUTO, Split::Test)).err().unwrap();
    assert!(error.to_string().contains("a single file holds one split, this one train"), "{error}");
    assert_eq!(error.exit_code(), 66);
    let error = open(&spec(&fixture("flat-folder"), FormatName::AUTO, Split::Test)).err().unwrap();
    assert!(error.to_string().contains("class folders directly in it are one split, train"), "{error}");

    // Sizes and channels differ in the flat folder.
    let flat = open_fixture("flat-folder", Split::Train);
    assert_eq!((flat.info().image_size, flat.info().channels), (None, 3));
    let shapes: Vec<_> = (0..2)
        .map(|i| flat.sample(i).unwrap().image)
        .map(|image| (image.width, image.height, image.channels))
        .collect();
    assert_eq!(shapes, [(32, 20, 3), (32, 32, 3)]);
}

#[test]
fn names_are_parsed_and_refused_with_the_choices() {
    for format in FormatName::all() {
        assert_eq!(FormatName::parse(format.as_str()).unwrap(), format);
    }
    let message = FormatName::parse("imagenet").unwrap_err().to_string();
    assert!(
        FormatName::all().all(|format| message.contains(format.as_str())) && message.ends_with("not \"imagenet\""),
        "{message}"
    );
    assert!("valid".parse::<Split>().is_err());

    let error = open(&DatasetSpec::new(Idx::NAME, None, Split::Train)).err().unwrap();
    assert_eq!(error.to_string(), "data.path must be a folder or file for format idx, not absent");
    let error = open(&spec(Path::new("/no/such/folder"), FormatName::AUTO, Split::Train)).err().unwrap();
    assert_eq!((error.to_string().as_str(), error.exit_code().code()), ("dataset not found: /no/such/folder", 66));
    let empty = tempfile::tempdir().unwrap();
    for &format in &[FormatName::AUTO, HfParquet::NAME, CifarBin::NAME, CifarPickle::NAME, Idx::NAME, ImageFolder::NAME]
    {
        let error = open(&spec(empty.path(), format, Split::Train)).err().unwrap();
        assert!(error.to_string().contains(&empty.path().display().to_string()), "{format}: {error}");
    }
}

#[test]
fn every_thread_reads_the_same() {
    for (name, ..) in FIXTURES.iter().chain(&[("flat-folder", FormatName::AUTO, 2, None)]) {
        let dataset = open_fixture(name, Split::Train);
        let alone: Vec<_> = (0..dataset.len()).map(|index| dataset.sample(index).unwrap()).collect();
        std::thread::scope(|scope| {
            for shift in 0..4 {
                let (dataset, alone) = (&dataset, &alone);
                scope.spawn(move || {
                    for index in (0..3 * alone.len()).map(|i| (i + shift) % alone.len()) {
                        assert_eq!(dataset.sample(index).unwrap(), alone[index], "{name}");
                    }
                });
            }
        });
    }
}

#[test]
fn embedded_subset_is_balanced() {
    for (split, num_samples) in [(Split::Train, 5000), (Split::Test, 1000)] {
        let dataset = open(&DatasetSpec { split, ..DatasetSpec::default() }).unwrap();
        let info = dataset.info();
        assert_eq!(
            (info.name.as_str(), info.format.as_str(), info.num_samples),
            ("fashion-mnist-6k", "embedded", num_samples)
        );
        assert_eq!((info.image_size, info.channels, info.class_names[9].as_str()), (Some((28, 28)), 1, "Ankle boot"));
        let found = summary(&*dataset).unwrap();
        assert!(found.classes.iter().all(|(_, count)| *count == num_samples / 10));
        // The published statistics of Fashion-MNIST are 0.2860 and 0.3530.
        assert!((found.mean[0] - 0.286).abs() < 0.01 && (found.std[0] - 0.353).abs() < 0.01, "{found:?}");
    }
}
