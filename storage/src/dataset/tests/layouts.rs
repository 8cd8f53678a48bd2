//! How splits, folders and shards are found: names, archives, leftovers, and what the notes say.

use super::*;

/// A dataset made of files at paths: a `.png` is an image, a `.parquet` has as many rows as its contents say (`3 rows`
/// of label 0), a path with a slash at its end is an empty folder, anything else is text.
pub(super) struct Made(tempfile::TempDir);

impl Made {
    pub(super) fn new(paths: &[&str]) -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        for path in paths {
            made.add(path);
        }
        made
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn add(&self, path: &str) {
        let target = self.path(path);
        if path.ends_with('/') {
            std::fs::create_dir_all(target).unwrap();
            return;
        }
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let lower = path.to_lowercase();
        if [".png", ".jpg", ".jpeg"].iter().any(|end| lower.ends_with(end)) {
            std::fs::copy(fixture("images/rgb.png"), target).unwrap();
        } else if lower.ends_with(".parquet") {
            // The label shows which file was read.
            write_parquet(&target, &[path.len() as i64; 2]);
        } else {
            std::fs::write(target, b"text").unwrap();
        }
    }

    pub(super) fn spec(&self, split: Split) -> DatasetSpec {
        DatasetSpec::new(FormatName::AUTO, Some(self.0.path().to_owned()), split)
    }

    pub(super) fn open(&self, split: Split) -> Arc<dyn Dataset> {
        open(&self.spec(split)).unwrap_or_else(|e| panic!("{split}: {e}"))
    }

    pub(super) fn error(&self, split: Split) -> DataError {
        open(&self.spec(split)).err().unwrap_or_else(|| panic!("{:?} was opened", files_below(self.0.path())))
    }

    /// Lengths of the paths of the files that were read, in the order of their rows.
    pub(super) fn read(&self, split: Split) -> Vec<usize> {
        let dataset = self.open(split);
        (0..dataset.len()).step_by(2).map(|row| dataset.label(row).unwrap().unwrap() as usize).collect()
    }
}

fn write_parquet(path: &Path, labels: &[i64]) {
    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
    let png = std::fs::read(fixture("images/rgb.png")).unwrap();
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(labels.iter().map(|_| &png)));
    let labels: ArrayRef = Arc::new(Int64Array::from(labels.to_vec()));
    let batch = RecordBatch::try_from_iter([("image", images), ("label", labels)]).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A train split of classes ant and bee, and another of the same.
pub(super) fn two_splits(train: &str, test: &str) -> Made {
    let made = Made::new(&[]);
    for (split, num) in [(train, 2), (test, 1)] {
        for class in ["ant", "bee"] {
            (0..num).for_each(|number| made.add(&format!("{split}/{class}/{number}.png")));
        }
    }
    made
}

pub(super) fn has_note(dataset: &dyn Dataset, text: &str) -> bool {
    dataset.notes().iter().any(|note| note.contains(text))
}

#[test]
fn split_folders_are_known_by_every_usual_name() {
    for (train, test, stored) in [
        ("train", "test", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "validation"),
        ("training", "testing", "test"),
        ("Training", "Validation", "validation"),
        ("train", "Test", "test"),
        ("train", "eval", "validation"),
        ("train", "dev", "validation"),
        ("train", "valid", "validation"),
        ("seg_train", "seg_test", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("training_set/training_set", "test_set/test_set", "test"),
        ("train_images", "val_images", "validation"),
        ("chest_train", "chest_test", "test"),
        ("NAME/train", "NAME/test", "test"),
        ("NAME/NAME/train", "NAME/NAME/val", "validation"),
        ("images/train", "images/test", "test"),
        ("train/images", "test/images", "test"),
    ] {
        let made = two_splits(train, test);
        made.add("README.md");
        let (first, second) = (made.open(Split::Train), made.open(Split::Test));
        let found = (first.len(), second.len(), first.info().split.as_str(), second.info().split.as_str());
        assert_eq!(found, (4, 2, "train", stored), "{train} and {test}");
        for dataset in [first, second] {
            assert_eq!(dataset.info().class_names, ["ant", "bee"], "{train} and {test}");
            assert_eq!(dataset.notes(), [""; 0], "{train} and {test}");
        }
    }
}

#[test]
fn the_test_split_is_preferred_and_other_splits_are_left_out() {
    let made = two_splits("train", "test");
    for path in ["val/ant/9.png", "train_noisy/ant/8.png", "extra/ant/7.png", "test_hard/bee/6.png"] {
        made.add(path);
    }
    let (train, test) = (made.open(Split::Train), made.open(Split::Test));
    assert_eq!((train.len(), test.len(), test.info().split.as_str()), (4, 2, "test"));
    assert!(has_note(&*train, "folders of other splits left out: 2 (test_hard, train_noisy)"), "{:?}", train.notes());
    assert!(has_note(&*train, "folders that are no split left out: 1 (extra)"), "{:?}", train.notes());
}

#[test]
fn two_folders_for_one_split_are_refused_and_an_exclusion_decides() {
    for (one, other) in [("train", "Train"), ("train", "training"), ("train_images", "seg_train")] {
        let made = two_splits(one, "test");
        made.add(&format!("{other}/ant/0.png"));
        let error = made.error(Split::Train);
        let text = error.to_string();
        assert!(text.contains("several folders for the train split") && text.contains("data.exclude"), "{text}");
        assert!(text.contains(one) && text.contains(other), "{text}");
        assert_eq!(error.exit_code(), 65);
        let spec = DatasetSpec { exclude: vec![other.to_owned()], ..made.spec(Split::Train) };
        let dataset = open(&spec).unwrap();
        assert_eq!(dataset.len(), 4);
        assert!(has_note(&*dataset, &format!("left out by data.exclude: 1 ({other})")), "{:?}", dataset.notes());
    }
    // Two validation splits matter only where there is no test split.
    let made = two_splits("train", "test");
    made.add("val/ant/0.png");
    made.add("dev/ant/0.png");
    assert_eq!(made.open(Split::Test).len(), 2);
    let spec = DatasetSpec { exclude: vec!["test".to_owned()], ..made.spec(Split::Test) };
    assert!(open(&spec).err().unwrap().to_string().contains("several folders for the validation split"));
}

#[test]
fn leftovers_of_systems_are_no_classes() {
    let leftovers = [
        "__MACOSX/ant/._0.png",
        "__MACOSX/ant/0.png",
        "@eaDir/x.jpg",
        "$RECYCLE.BIN/y.png",
        "System Volume Information/z.png",
        "lost+found/l.png",
        ".ipynb_checkpoints/c.png",
        ".git/objects/g.png",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
    ];
    for split in ["", "train/"] {
        let made = Made::new(&["ant/0.png", "bee/0.png"].map(|path| format!("{split}{path}")).each_ref().map(|p| &**p));
        let plain = made.open(Split::Train);
        for path in leftovers {
            made.add(&format!("{split}{path}"));
            made.add(&format!("{split}ant/{path}"));
        }
        let dataset = made.open(Split::Train);
        assert_eq!(dataset.info(), plain.info());
        let notes = dataset.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("hidden or system files and folders skipped: 20 ("),
            "{notes:?}"
        );
        assert!(notes[0].contains("$RECYCLE.BIN") && notes[0].ends_with(" and 10 more)"), "{notes:?}");
    }
}

#[test]
fn folders_without_images_are_no_classes_and_named() {
    let made = two_splits("train", "test");
    for path in ["train/cow/", "train/dog/readme.txt", "train/x\u{1b}[2J\n/", "train/7.png"] {
        made.add(path);
    }
    let dataset = made.open(Split::Train);
    assert_eq!((dataset.len(), dataset.info().class_names.len()), (4, 2));
    let expected = "folders without images, no classes: 3 (train/cow, train/dog, train/x\\u{1b}[2J\\n)";
    assert!(has_note(&*dataset, expected), "{:?}", dataset.notes());
    assert!(has_note(&*dataset, "images outside of class folders left out: 1 (train/7.png)"), "{:?}", dataset.notes());
    // The test split has its own classes, which are mapped to these by name.
    made.add("test/cow/0.png");
    assert_eq!(made.open(Split::Test).info().class_names, ["ant", "bee", "cow"]);
}

#[test]
fn a_test_split_without_classes_is_none() {
    for (test, also) in [
        ("test/1.png", "sampleSubmission.csv"),
        ("test1/1.png", "x.csv"),
        ("test/unknown/1.png", "x.csv"),
        ("test/images/1.png", "test/x.txt"),
        ("test/test/1.png", "x.csv"),
        ("seg_test/seg_test/1.png", "seg_pred/seg_pred/2.png"),
    ] {
        let made = two_splits("train", "nothing");
        made.add(test);
        made.add(also);
        let train = made.open(Split::Train);
        assert_eq!(train.info().class_names, ["ant", "bee"], "{test}");
        assert!(has_note(&*train, "have no classes, it is not used as a test split"), "{test}: {:?}", train.notes());
        let error = made.error(Split::Test);
        assert!(matches!(error, DataError::NoSplit { .. }), "{test}: {error}");
        assert!(error.to_string().contains("have no classes"), "{test}: {error}");
        // The validation split is judged by instead.
        made.add("val/bee/1.png");
        assert_eq!(made.open(Split::Test).info().split, "validation", "{test}");
    }
    // A class that train lacks is a mistake, not the lack of classes.
    let made = two_splits("train", "nothing");
    made.add("test/7/1.png");
    assert_eq!(made.open(Split::Test).info().class_names, ["7"]);
}

#[test]
fn tiny_imagenet_has_its_validation_classes_in_a_file() {
    let made = Made::new(&["tiny/words.txt", "tiny/wnids.txt", "tiny/test/images/test_0.JPEG"]);
    for class in ["n01", "n02"] {
        made.add(&format!("tiny/train/{class}/{class}_boxes.txt"));
        (0..3).for_each(|number| made.add(&format!("tiny/train/{class}/images/{class}_{number}.JPEG")));
    }
    (0..3).for_each(|number| made.add(&format!("tiny/val/images/val_{number}.JPEG")));
    let annotations = made.path("tiny/val/val_annotations.txt");
    let lines = ["val_1.JPEG\tn01\t0\t0\t9\t9", "val_0.JPEG\tn02\t1\t2\t3\t4", "val_2.JPEG\tn02\t1\t2\t3\t4"];
    std::fs::write(&annotations, lines.join("\n")).unwrap();
    let (train, test) = (made.open(Split::Train), made.open(Split::Test));
    assert_eq!((train.len(), train.info().class_names.as_slice()), (6, &["n01".to_owned(), "n02".to_owned()][..]));
    assert_eq!(test.info().split, "validation");
    assert_eq!((0..3).map(|row| test.label(row).unwrap().unwrap()).collect::<Vec<_>>(), [1, 0, 1]);
    assert!(has_note(&*train, "the images of tiny/test have no classes"), "{:?}", train.notes());
    for (text, reason) in [
        (lines[..2].join("\n"), "has no line in val_annotations.txt"),
        ([&lines[..], &["val_9.JPEG\tn01"]].concat().join("\n"), "names an image that is absent, val_9.JPEG"),
        ([&lines[..], &lines[..1]].concat().join("\n"), "line 4: a second line for val_1.JPEG"),
        (lines.join("\n").replace("n02", "n03"), "line 2: class without a folder in the train split, n03"),
        ("val_0.JPEG n01".to_owned(), "line 1: must be an image's name, a tab and its class, not val_0.JPEG n01"),
    ] {
        std::fs::write(&annotations, text).unwrap();
        let error = made.error(Split::Test);
        assert!(error.to_string().ends_with(reason) && error.exit_code() == 65, "{error}");
    }
}

#[test]
fn split_names_among_class_folders_are_never_silently_classes() {
    // Kaggle's unlabelled test images beside the classes.
    let made = Made::new(&["cat/0.png", "dog/0.png", "test/0.png"]);
    let dataset = made.open(Split::Train);
    assert_eq!(dataset.info().class_names, ["cat", "dog"]);
    assert!(has_note(&*dataset, "left out and no class (if it is one, put all classes into a folder train): 1 (test)"));
    // In a train folder they are classes.
    let made = Made::new(&["train/cat/0.png", "train/test/0.png", "train/val/0.png"]);
    assert_eq!(made.open(Split::Train).info().class_names, ["cat", "test", "val"]);
    // A train is also a vehicle.
    let made = Made::new(&["bus/0.png", "train/0.png"]);
    let dataset = made.open(Split::Train);
    assert_eq!(dataset.info().class_names, ["bus", "train"]);
    assert!(has_note(&*dataset, "taken for a class"), "{:?}", dataset.notes());
    // Names that only contain a split's are classes without a word.
    let made = Made::new(&["trainers/0.png", "test_tube/0.png", "valley/0.png"]);
    assert_eq!(made.open(Split::Train).info().class_names, ["test_tube", "trainers", "valley"]);
    assert_eq!(made.open(Split::Train).notes(), [""; 0]);
    // Splits of images without classes would become two classes.
    for paths in [&["train/0.png", "test/0.png"][..], &["train/0.png", "test1/0.png", "extra/0.png"], &["train/0.png"]]
    {
        let error = Made::new(paths).error(Split::Train);
        assert!(error.to_string().contains("train: holds images directly, where a folder for each class"), "{error}");
    }
    // Classes beside a test split that has classes: nothing says what they are.
    let error = Made::new(&["cat/0.png", "dog/0.png", "test/cat/0.png"]).error(Split::Train);
    assert!(matches!(error, DataError::NoSplit { .. }), "{error}");
    // Classes that have splits inside.
    let paths = ["bottle/train/good/0.png", "bottle/test/bad/0.png", "cable/train/good/0.png", "cable/test/bad/0.png"];
    for format in [FormatName::AUTO, ImageFolder::NAME] {
        let made = Made::new(&paths);
        let error = open(&DatasetSpec { format, ..made.spec(Split::Train) }).err().unwrap();
        assert!(
            error.to_string().ends_with("choose data.path from them: bottle, cable")
                || error.to_string().contains("choose data.path from them"),
            "{error}"
        );
    }
}

#[cfg(unix)]
#[test]
fn links_in_circles_and_special_files_are_skipped_or_refused() {
    use std::os::unix::fs::symlink;
    let made = two_splits("train", "test");
    symlink(".", made.path("train/circle")).unwrap();
    symlink("self", made.path("train/self")).unwrap();
    symlink("nowhere", made.path("train/ant/readme")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(made.path("train/ant/socket.png")).unwrap();
    let fifo = made.path("train/bee/fifo.png");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let train = made.open(Split::Train);
    assert_eq!((train.len(), train.info().class_names.len()), (4, 2));
    for note in [
        "links to folders around them, not followed: 1 (train/circle)",
        "links that lead nowhere skipped: 2 (train/self, train/ant/readme)",
        "skipped, a socket and no file: 1 (train/ant/socket.png)",
        "skipped, a fifo and no file: 1 (train/bee/fifo.png)",
    ] {
        assert!(has_note(&*train, note), "{note}: {:?}", train.notes());
    }
    // A picture that is announced and absent is missed.
    symlink("nowhere", made.path("train/ant/9.png")).unwrap();
    let error = made.error(Split::Train);
    assert!(error.to_string().ends_with("train/ant/9.png: is a link that leads nowhere"), "{error}");
    std::fs::remove_file(made.path("train/ant/9.png")).unwrap();
    // The images of one class under two names.
    symlink("ant", made.path("train/wasp")).unwrap();
    let error = made.error(Split::Train);
    assert!(error.to_string().ends_with("train/wasp: has the images of another class, ant"), "{error}");
    std::fs::remove_file(made.path("train/wasp")).unwrap();
    std::fs::remove_dir_all(made.path("test")).unwrap();
    symlink("train", made.path("test")).unwrap();
    let error = made.error(Split::Test);
    assert!(error.to_string().contains("test: is a link into another split"), "{error}");

    // A link out of the dataset is refused without a walk through what is there.
    std::fs::remove_file(made.path("test")).unwrap();
    for link in ["test", "train/out", "Training", "train/ant/out"] {
        symlink("/", made.path(link)).unwrap();
        for split in [Split::Train, Split::Test] {
            if let Some(error) = open(&made.spec(split)).err() {
                let is_told =
                    matches!(error, DataError::Escape { .. } | DataError::NoSplit { .. } | DataError::Ambiguous { .. });
                assert!(is_told, "{link}: {error}");
            } else {
                assert_eq!((link, split), ("test", Split::Train));
            }
        }
        std::fs::remove_file(made.path(link)).unwrap();
    }

    // Parquet: neither waits for a writer.
    let made = Made::new(&["test.parquet"]);
    assert!(std::process::Command::new("mkfifo").arg(made.path("train.parquet")).status().unwrap().success());
    assert!(matches!(made.error(Split::Train), DataError::NoSplit { .. }));
    let error =
        open(&DatasetSpec::new(FormatName::AUTO, Some(made.path("train.parquet")), Split::Train)).err().unwrap();
    assert!(error.to_string().ends_with("train.parquet: a dataset is a folder or a file, not a fifo"), "{error}");
    std::fs::remove_file(made.path("train.parquet")).unwrap();
    symlink("train.parquet", made.path("train.parquet")).unwrap();
    let error = made.error(Split::Train);
    assert!(error.to_string().ends_with("train.parquet: is a link that leads nowhere"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_class_that_cannot_be_read_is_no_empty_class() {
    use std::os::unix::fs::PermissionsExt;
    let made = two_splits("train", "test");
    let folder = made.path("train/bee");
    let set = |mode| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o000);
    // Root reads everything.
    let is_readable = folder.read_dir().is_ok();
    let result = open(&made.spec(Split::Train));
    set(0o755);
    assert!(is_readable || result.err().is_some_and(|error| error.exit_code() == 74));
}

#[test]
fn exclusions_that_match_nothing_are_told() {
    let made = two_splits("train", "test");
    let exclude = ["test/bee", "train/ant/1.png", "wasp", "dev*"].map(str::to_owned).to_vec();
    let train = open(&DatasetSpec { exclude: exclude.clone(), ..made.spec(Split::Train) }).unwrap();
    assert_eq!(train.len(), 3);
    let unused = "data.exclude matches nothing: 2 (\"wasp\", \"dev*\")";
    assert!(has_note(&*train, unused), "{:?}", train.notes());
    let test = open(&DatasetSpec { exclude, ..made.spec(Split::Test) }).unwrap();
    assert_eq!((test.len(), test.info().class_names.len()), (1, 1));
    assert!(has_note(&*test, unused) && has_note(&*test, "left out by data.exclude"), "{:?}", test.notes());
    let spec = DatasetSpec { exclude: vec!["test".to_owned()], ..made.spec(Split::Test) };
    assert!(matches!(open(&spec).err().unwrap(), DataError::NoSplit { .. }));
    let spec = DatasetSpec { exclude: vec!["[".to_owned()], ..made.spec(Split::Test) };
    assert!(open(&spec).err().unwrap().to_string().starts_with("data.exclude must be names or patterns"));
    for (name, file, split) in [("cifar10-bin", "test_batch.bin", Split::Test), ("idx-gz", "t10k*", Split::Test)] {
        let spec =
            DatasetSpec { exclude: vec![file.to_owned()], ..super::spec(&fixture(name), FormatName::AUTO, split) };
        assert!(matches!(open(&spec).err().unwrap(), DataError::NoSplit { .. }), "{name}");
    }
}

#[test]
fn idx_and_cifar_are_found_beside_leftovers_and_in_wrappers() {
    for name in ["idx-plain", "cifar10-bin", "cifar100-bin", "cifar10-py3"] {
        let made = Made::new(&["NAME/__MACOSX/x.png", "NAME/.DS_Store"]);
        copy_folder(&fixture(name), &made.path("NAME/inner"));
        std::fs::write(made.path("NAME/inner/._train-images-idx3-ubyte"), b"resource fork").unwrap();
        for split in [Split::Train, Split::Test] {
            let (plain, wrapped) = (open_fixture(name, split), made.open(split));
            assert_eq!(
                (plain.len(), &plain.info().class_names),
                (wrapped.len(), &wrapped.info().class_names),
                "{name}"
            );
        }
    }
}
