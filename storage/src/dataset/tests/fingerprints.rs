use super::super::fingerprint::{Fingerprint, Part};
use super::*;

/// The fingerprint of the train split at `path`.
fn train(path: &Path) -> Fingerprint {
    let dataset = open(&DatasetSpec::new(FormatName::AUTO, Some(path.to_owned()), Split::Train)).unwrap();
    Fingerprint::of(&*dataset, Some(path)).unwrap()
}

/// A fixture's fingerprint against that of a copy under another name, after `change`.
fn changes(name: &str, change: impl Fn(&Path)) -> Vec<(Part, String)> {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("renamed");
    copy_folder(&fixture(name), &copy);
    change(&copy);
    let (before, now) = (train(&fixture(name)), train(&copy));
    assert!(before.is_complete());
    let found: Vec<_> = before.changes(&now).into_iter().map(|change| (change.part, change.text)).collect();
    // It comes back from a checkpoint as it was.
    let stored: Fingerprint = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
    assert_eq!(stored, before);
    found
}

fn parts(name: &str, change: impl Fn(&Path)) -> Vec<Part> {
    changes(name, change).into_iter().map(|(part, _)| part).collect()
}

#[test]
fn moved_and_renamed_data_are_the_same() {
    for name in ["image-folder", "cifar10-bin", "cifar10-py3", "idx-gz", "hf-snappy"] {
        assert_eq!(changes(name, |_| {}), [], "{name}");
    }
}

#[test]
fn every_change_of_a_folder_is_found_and_named() {
    let folder = |change: fn(&Path)| changes("image-folder", change);
    let extra_class = folder(|root| {
        copy_folder(&root.join("train/ant"), &root.join("train/cat"));
    });
    assert_eq!(extra_class[0], (Part::Samples, "6 images, were 4".to_owned()));
    assert_eq!(extra_class[1], (Part::ClassNames, "3 classes, were 2".to_owned()));
    let renamed_class = folder(|root| std::fs::rename(root.join("train/bee"), root.join("train/wasp")).unwrap());
    assert_eq!(renamed_class[0], (Part::ClassNames, "class 1 is \"wasp\", was \"bee\"".to_owned()));
    let relabelled = parts("image-folder", |root| {
        std::fs::rename(root.join("train/bee/1.png"), root.join("train/ant/2.png")).unwrap();
    });
    assert!(relabelled.contains(&Part::Labels), "{relabelled:?}");
    let exchanged = folder(|root| {
        let (a, b) = (root.join("train/ant/0.png"), root.join("train/bee/1.png"));
        let (first, second) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        std::fs::write(a, second).unwrap();
        std::fs::write(b, first).unwrap();
    });
    assert_eq!(exchanged[0], (Part::Pixels, "pixels of sample 0 (2 of 4 compared images differ)".to_owned()));
    let removed = parts("image-folder", |root| std::fs::remove_file(root.join("train/bee/1.png")).unwrap());
    assert_eq!(removed[0], Part::Samples);
    let damaged = folder(|root| std::fs::write(root.join("train/bee/1.png"), b"none").unwrap());
    assert_eq!(damaged[0].0, Part::Pixels, "{damaged:?}");
}

#[test]
fn other_files_with_the_same_images_differ_in_their_files_alone() {
    let packed_again = changes("image-folder", |root| {
        let path = root.join("train/ant/0.png");
        image::open(&path).unwrap().save(&path).unwrap();
    });
    assert_eq!(packed_again.len(), 1, "{packed_again:?}");
    let (part, text) = &packed_again[0];
    assert!(*part == Part::Files && text.starts_with("train/ant/0.png has "), "{packed_again:?}");
    let renamed = changes("image-folder", |root| {
        std::fs::rename(root.join("train/ant/0.png"), root.join("train/ant/00.png")).unwrap();
    });
    assert_eq!(renamed, [(Part::Files, "file train/ant/00.png, was train/ant/0.png".to_owned())]);
    let folder = tempfile::tempdir().unwrap();
    convert(&*open_fixture("image-folder", Split::Train), folder.path(), &mut |_, _| {}).unwrap();
    let converted = train(&fixture("image-folder")).changes(&train(folder.path()));
    assert_eq!(converted.len(), 1, "{converted:?}");
    assert_eq!(converted[0].text, "files are hf-parquet, were image-folder");
}

#[test]
fn shards_in_another_order_are_found_even_where_labels_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |seed| SyntheticSpec {
        num_train: 12,
        num_test: 1,
        image: 16,
        num_classes: 2,
        seed,
        channels: 1,
        ..SyntheticSpec::default()
    };
    let shards = [1, 2].map(|seed| {
        let place = folder.path().join(seed.to_string());
        std::fs::create_dir(&place).unwrap();
        let reports = write_synthetic(&spec(seed), &place, &mut |_, _| {}).unwrap();
        reports[0].path.clone()
    });
    let put = |name: &str, order: [usize; 2]| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        for (number, from) in order.into_iter().enumerate() {
            std::fs::copy(&shards[from], place.join(format!("train-0000{number}-of-00002.parquet"))).unwrap();
        }
        train(&place)
    };
    let (before, same, other) = (put("a", [0, 1]), put("b", [0, 1]), put("c", [1, 0]));
    assert_eq!((before.num_files, &before.listed[0].row_groups[..]), (2, &[12][..]));
    assert_eq!(before.changes(&same), []);
    let changes = before.changes(&other);
    assert!(changes.iter().any(|change| change.part == Part::Pixels), "{changes:?}");
}

#[test]
fn of_many_images_a_part_is_compared() {
    let spec = |seed| SyntheticSpec {
        num_train: 3000,
        num_test: 1,
        image: 16,
        num_classes: 2,
        seed,
        channels: 1,
        ..SyntheticSpec::default()
    };
    let of = |seed| Fingerprint::of(&SyntheticDataset::new(&spec(seed), Split::Train).unwrap(), None).unwrap();
    let print = of(1);
    assert_eq!((print.num_compared(), print.is_complete(), print.num_files), (1024, false, 0));
    assert_eq!(print.changes(&of(1)), []);
    assert!(print.changes(&of(2)).iter().any(|change| change.part == Part::Pixels));
}

#[test]
fn an_image_that_is_not_compared_cannot_change_unseen_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let images = |shade: u8| -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3, 0, 0, 0x13, 0x88, 0, 0, 0, 8, 0, 0, 0, 8];
        bytes.extend((0..5000 * 64).map(|at| if at / 64 == 4321 { shade } else { (at % 251) as u8 }));
        bytes
    };
    let put = |name: &str, shade: u8| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("train-images-idx3-ubyte"), images(shade)).unwrap();
        let labels = [&[0, 0, 8, 1, 0, 0, 0x13, 0x88][..], &[0, 1].repeat(2500)].concat();
        std::fs::write(place.join("train-labels-idx1-ubyte"), labels).unwrap();
        train(&place)
    };
    let (before, same, other) = (put("a", 1), put("b", 1), put("c", 2));
    assert_eq!((before.num_samples, before.num_compared()), (5000, 1024));
    assert_eq!(before.changes(&same), []);
    let changes = before.changes(&other);
    assert!(changes.iter().any(|change| change.part == Part::Files), "{changes:?}");
}
