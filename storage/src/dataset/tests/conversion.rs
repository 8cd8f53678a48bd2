use super::*;

#[test]
fn every_fixture_survives_conversion() {
    for (name, ..) in FIXTURES.iter().chain(&[("flat-folder", FormatName::AUTO, 2, None)]) {
        let original = open_fixture(name, Split::Train);
        let folder = tempfile::tempdir().unwrap();
        let mut calls = Vec::new();
        let report = convert(&*original, folder.path(), &mut |done, total| calls.push((done, total))).unwrap();
        assert_eq!(calls.last(), Some(&(original.len(), original.len())), "{name}");
        assert_eq!(
            (report.num_samples, report.num_bytes),
            (original.len(), report.path.metadata().unwrap().len()),
            "{name}"
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no leftovers of {name}");
        let copy = open(&DatasetSpec::new(FormatName::AUTO, Some(folder.path().to_owned()), Split::Train)).unwrap();
        assert_eq!(copy.info().class_names, original.info().class_names, "{name}");
        assert_eq!(copy.info().image_size, original.info().image_size, "{name}");
        for index in 0..original.len() {
            assert_eq!(copy.sample(index).unwrap(), original.sample(index).unwrap(), "{name}");
        }
        assert_eq!(summary(&*copy).unwrap(), summary(&*original).unwrap(), "{name}");
        let error = convert(&*original, folder.path(), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, DataError::Exists { .. }) && error.exit_code() == 74);
    }
}

#[test]
fn a_failed_conversion_leaves_nothing() {
    let dataset = open_fixture("hf-plain", Split::Train);
    let folder = tempfile::tempdir().unwrap();
    let error = convert(&*dataset, folder.path(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("train.parquet: sample 2"), "{error}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn synthetic_data_are_written_in_both_splits() {
    let spec = SyntheticSpec {
        num_train: 1100,
        num_test: 30,
        image: 16,
        num_classes: 3,
        seed: 9,
        channels: 3,
        ..SyntheticSpec::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut calls = Vec::new();
    let reports = write_synthetic(&spec, folder.path(), &mut |done, total| calls.push((done, total))).unwrap();
    assert_eq!(calls, [(500, 1130), (1000, 1130), (1100, 1130), (1130, 1130)]);
    assert_eq!(reports.iter().map(|report| report.num_samples).collect::<Vec<_>>(), [1100, 30]);
    for split in [Split::Train, Split::Test] {
        let generated = SyntheticDataset::new(&spec, split).unwrap();
        let stored = open(&DatasetSpec::new(FormatName::AUTO, Some(folder.path().to_owned()), split)).unwrap();
        assert_eq!(stored.info().class_names, ["circle", "square", "triangle"]);
        for index in 0..generated.len() {
            assert_eq!(stored.sample(index).unwrap(), generated.sample(index).unwrap());
        }
    }
}

#[test]
fn summary_counts_and_averages() {
    let found = summary(&*open_fixture("hf-snappy", Split::Train)).unwrap();
    assert_eq!((found.num_samples, found.num_unlabelled, found.classes[3].1, found.classes[7].1), (4, 2, 1, 1));
    assert_eq!((found.min_size, found.max_size, found.channels), ((32, 32), (32, 32), 3));
    let flat = summary(&*open_fixture("flat-folder", Split::Train)).unwrap();
    assert_eq!((flat.min_size, flat.max_size), ((32, 20), (32, 32)));

    // One golden image: its statistics computed apart from the sums.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("only")).unwrap();
    std::fs::copy(fixture("images/rgb.png"), folder.path().join("only/golden.png")).unwrap();
    let found = summary(&*open(&spec(folder.path(), FormatName::AUTO, Split::Train)).unwrap()).unwrap();
    for channel in 0..3 {
        let values: Vec<f64> =
            golden().iter().skip(channel).step_by(3).map(|&value| f64::from(value) / 255.0).collect();
        let mean = values.iter().sum::<f64>() / 1024.0;
        let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1024.0).sqrt();
        assert!((found.mean[channel] - mean).abs() < 1e-12 && (found.std[channel] - std).abs() < 1e-9);
    }
}
