//! Folders of masks, Pascal VOC and COCO: layouts, damage, links, and what counts of them. Whether their values are right
//! is compared with other readers by `tests/python/targets.py`.

use super::*;
use crate::dataset::fingerprint::Fingerprint;

/// A temporary folder with files.
struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn spec(&self, targets: &[TargetKind]) -> DatasetSpec {
        DatasetSpec {
            targets: targets.to_vec(),
            ..DatasetSpec::new(FormatName::AUTO, Some(self.0.path().to_owned()), Split::Train)
        }
    }

    fn error(&self, targets: &[TargetKind]) -> String {
        let error = first_error(&self.spec(targets)).unwrap_or_else(|| panic!("{}", self.0.path().display()));
        assert!(!error.to_string().contains('\n'), "{error}");
        error.to_string()
    }
}

/// A PNG of grey values below 8 in pixels of 6 by 4.
fn grey(last: u8) -> Vec<u8> {
    let pixels = (0..24).map(|at| at % (last + 1)).collect();
    convert::encode_png(&Image { width: 6, height: 4, channels: 1, pixels }).unwrap()
}

fn masks() -> Made {
    let made = Made::new();
    for split in ["train", "val"] {
        for name in ["a", "b"] {
            made.write(&format!("NAME/images/{split}/{name}.png"), grey(7));
            made.write(&format!("NAME/masks/{split}/{name}.png"), grey(2));
        }
    }
    made
}

const XML: &str = "<annotation><size><width>6</width><height>4</height></size><object><name>cat</name><bndbox><xmin>1</xmin>\
    <ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>";

fn voc() -> Made {
    let made = Made::new();
    made.write("JPEGImages/0.png", grey(7));
    made.write("Annotations/0.xml", XML);
    made
}

const JSON: &str = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 6, "height": 4}], "annotations": [{"id": 1,
    "image_id": 1, "category_id": 5, "bbox": [0, 1, 2, 3], "area": 4}], "categories": [{"id": 5, "name": "cat"}]}"#;

fn coco() -> Made {
    let made = Made::new();
    made.write("images/train2017/a.png", grey(7));
    made.write("annotations/instances_train2017.json", JSON);
    made
}

#[test]
fn layouts_are_recognised_and_have_their_splits() {
    let made = masks();
    for (split, stored) in [(Split::Train, "train"), (Split::Test, "validation"), (Split::Validation, "validation")] {
        let dataset = open(&DatasetSpec { split, ..made.spec(&[TargetKind::Map]) }).unwrap();
        let info = dataset.info();
        assert_eq!((&*info.format, &*info.split, info.num_samples), ("mask-folder", stored, 2));
        assert_eq!((info.image_size, info.channels, dataset.label(1).unwrap()), (Some((6, 4)), 1, None));
        assert_eq!(dataset.targets_info()[0].names, ["0", "1", "2"]);
        assert_eq!(dataset.files().len(), 4);
        assert!(dataset.resident_bytes() > 100);
    }
    for (made, format) in [(voc(), "voc"), (coco(), "coco")] {
        let dataset = open(&made.spec(&[TargetKind::Boxes, TargetKind::Labels])).unwrap();
        assert_eq!(dataset.info().format, format);
        let sample = dataset.sample(0).unwrap();
        let Target::Boxes(boxes) = &sample.targets[0] else { panic!("boxes") };
        assert_eq!(boxes.len(), 1);
        assert!(
            matches!(&sample.targets[1], Target::Labels(labels) if labels.iter().filter(|label| **label == 1).count() == 1)
        );
        let error = open(&DatasetSpec { split: Split::Test, ..made.spec(&[TargetKind::Boxes]) }).err().unwrap();
        assert!(matches!(error, DataError::NoSplit { .. }), "{error}");
    }
    // Class folders of the same names are no masks.
    let made = Made::new();
    for path in ["images/one/a.png", "masks/one/a.png", "images/two/a.png"] {
        made.write(path, grey(7));
    }
    assert!(open(&made.spec(&[TargetKind::Map])).is_err());
}

#[test]
fn cut_files_are_refused_by_name() {
    for (made, targets, file) in [
        (masks(), [TargetKind::Map], "NAME/masks/train/b.png"),
        (voc(), [TargetKind::Boxes], "Annotations/0.xml"),
        (coco(), [TargetKind::Boxes], "annotations/instances_train2017.json"),
    ] {
        let whole = std::fs::read(made.path(file)).unwrap();
        assert!(first_error(&made.spec(&targets)).is_none(), "{file}");
        for len in 0..whole.len() {
            made.write(file, &whole[..len]);
            let error = made.error(&targets);
            assert!(error.contains(file), "{file} cut to {len}: {error}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x41;
            made.write(file, &flipped);
            // It may still be right, and does not panic.
            let _ = first_error(&made.spec(&targets));
        }
    }
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let made = voc();
    made.write("Annotations/0.xml", "<a>".repeat(300_000));
    assert!(made.error(&[TargetKind::Boxes]).contains("0.xml: is no XML"));
    let made = coco();
    for deep in
        ["[".repeat(1_000_000), JSON.replacen("\"area\"", &format!("\"segmentation\": {}", "[".repeat(1_000_000)), 1)]
    {
        made.write("annotations/instances_train2017.json", deep);
        assert!(made.error(&[TargetKind::Boxes]).contains("is no COCO file of objects"));
    }
}

#[test]
fn a_change_of_targets_changes_the_fingerprint() {
    for (made, targets, file, old, new) in [
        (voc(), [TargetKind::Boxes], "Annotations/0.xml", "<xmax>3", "<xmax>4"),
        (coco(), [TargetKind::Boxes], "annotations/instances_train2017.json", "\"area\": 4", "\"area\": 5"),
    ] {
        let print = || Fingerprint::of(&*open(&made.spec(&targets)).unwrap(), None).unwrap();
        let before = print();
        assert_eq!(before, print());
        let text = std::fs::read_to_string(made.path(file)).unwrap();
        made.write(file, text.replace(old, new));
        assert_ne!(before.pixels, print().pixels, "{file}");
    }
    let made = masks();
    let print = || Fingerprint::of(&*open(&made.spec(&[TargetKind::Map])).unwrap(), None).unwrap();
    let before = print();
    made.write("NAME/masks/train/b.png", grey(1));
    assert_ne!(before.pixels, print().pixels);
}

#[test]
fn a_split_with_other_classes_does_not_judge() {
    let made = masks();
    let split = |split| open(&DatasetSpec { split, ..made.spec(&[TargetKind::Map]) }).unwrap();
    let train = split(Split::Train);
    assert!(align(split(Split::Test), &*train, &[]).is_ok());
    made.write("NAME/masks/val/b.png", grey(1));
    made.write("NAME/masks/val/a.png", grey(1));
    assert!(align(split(Split::Test), &*train, &[]).is_ok(), "numbers that the train split has too");
    made.write("NAME/masks/val/a.png", grey(5));
    let error = align(split(Split::Test), &*train, &[]).err().unwrap().to_string();
    assert!(error.contains("the map of the validation split") && error.contains("6 here and 3 there"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_out_of_the_dataset_are_refused() {
    let outside = Made::new();
    outside.write("secret.png", grey(1));
    let made = masks();
    std::fs::remove_file(made.path("NAME/masks/train/b.png")).unwrap();
    std::os::unix::fs::symlink(outside.path("secret.png"), made.path("NAME/masks/train/b.png")).unwrap();
    assert!(made.error(&[TargetKind::Map]).contains("leads out of the dataset's folder"));
    let made = voc();
    std::fs::remove_file(made.path("Annotations/0.xml")).unwrap();
    outside.write("0.xml", XML);
    std::os::unix::fs::symlink(outside.path("0.xml"), made.path("Annotations/0.xml")).unwrap();
    assert!(made.error(&[TargetKind::Boxes]).contains("leads out of the dataset's folder"));
}

#[test]
fn bounds_on_memory_hold_for_annotations() {
    let made = coco();
    let spec = DatasetSpec { max_resident_bytes: Some(100), ..made.spec(&[TargetKind::Boxes]) };
    assert!(matches!(open(&spec).err().unwrap(), DataError::Memory { .. }));
}
