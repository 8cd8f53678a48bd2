//! Targets of generated images: kinds against each other, and against the pixels.

use std::collections::BTreeSet;

use super::*;

fn shapes(num_objects: [usize; 2], image: usize, channels: usize) -> SyntheticSpec {
    SyntheticSpec {
        num_train: 60,
        num_test: 20,
        image,
        num_classes: 6,
        seed: 7,
        channels,
        num_objects,
        ..Default::default()
    }
}

fn scene(spec: &SyntheticSpec, targets: &[TargetKind]) -> SyntheticDataset {
    SyntheticDataset::with_targets(spec, Split::Train, targets).unwrap()
}

/// Targets of a sample, one of each kind.
struct All {
    class: usize,
    labels: Vec<i8>,
    values: Vec<f32>,
    map: ClassMap,
    boxes: Vec<ObjectBox>,
}

fn all(dataset: &SyntheticDataset, index: usize) -> All {
    let sample = dataset.sample(index).unwrap();
    let Ok(
        [Target::Class(class), Target::Labels(labels), Target::Values(values), Target::Map(map), Target::Boxes(boxes)],
    ) = <[Target; 5]>::try_from(sample.targets)
    else {
        panic!("a target of each kind")
    };
    assert_eq!((sample.label, dataset.label(index).unwrap()), (Some(class), Some(class)));
    assert_eq!(
        (map.width, map.height, map.classes.len()),
        (sample.image.width, sample.image.height, sample.image.width * sample.image.height)
    );
    All { class: class as usize, labels: labels.to_vec(), values: values.to_vec(), map, boxes: boxes.to_vec() }
}

/// The smallest box around the pixels of a class of a map, and their number.
fn around(map: &ClassMap, class: u16) -> Option<([f32; 4], f32)> {
    let pixels = || (0..map.classes.len()).filter(|at| map.classes[*at] == class);
    let xs: BTreeSet<usize> = pixels().map(|at| at % map.width).collect();
    let ys: BTreeSet<usize> = pixels().map(|at| at / map.width).collect();
    let edges = [*xs.first()?, *ys.first()?, xs.last()? + 1, ys.last()? + 1].map(|edge| edge as f32);
    Some((edges, pixels().count() as f32))
}

#[test]
fn kinds_of_targets_agree_with_each_other() {
    let voronoi = SyntheticSpec { scene: SyntheticScene::Voronoi, num_objects: [1, 3], ..shapes([1, 3], 24, 3) };
    let mut counts = [0; 4];
    for (spec, most) in
        [(shapes([1, 3], 32, 3), 3), (shapes([2, 2], 40, 1), 2), (shapes([1, 1], 32, 3), 1), (voronoi, 1)]
    {
        let dataset = scene(&spec, &TargetKind::ALL);
        let side = spec.image as f32;
        for index in 0..60 {
            let All { class, labels, values, map, boxes } = all(&dataset, index);
            assert!(boxes.len() <= most && !boxes.is_empty());
            counts[boxes.len()] += 1;
            let in_map: BTreeSet<usize> =
                map.classes.iter().filter(|class| **class > 0).map(|class| *class as usize - 1).collect();
            let present: BTreeSet<usize> = (0..labels.len()).filter(|class| labels[*class] == 1).collect();
            let boxed: BTreeSet<usize> = boxes.iter().map(|object| object.class as usize).collect();
            assert_eq!((labels.len(), &present, &boxed), (6, &in_map, &in_map));
            assert!(labels.iter().all(|label| matches!(label, 0 | 1)));
            assert_eq!(
                map.classes.iter().filter(|class| **class > 0).count() as f32,
                boxes.iter().map(|b| b.area).sum::<f32>()
            );
            // Where each object has a class of its own, its box is that of the class in the map.
            if boxed.len() == boxes.len() {
                for object in &boxes {
                    assert_eq!(around(&map, object.class as u16 + 1), Some((object.edges, object.area)), "{index}");
                    assert!(!object.ignored);
                }
                let areas = boxes.iter().map(|object| object.area).fold(0.0, f32::max);
                let largest = boxes.iter().find(|object| object.area == areas).unwrap();
                assert_eq!(largest.class as usize, class, "{index}");
                // The centre of the shape's square is near that of its box, if nothing hides it.
                if boxes.len() == 1 && most == 1 {
                    let [left, top, right, bottom] = largest.edges;
                    let half = values[2] / 2.0 * 1.3 * side + 1.0;
                    assert!(
                        (values[0] * side - (left + right) / 2.0).abs() < half / 2.0,
                        "{index}: {values:?}, {largest:?}"
                    );
                    assert!(
                        (values[1] * side - (top + bottom) / 2.0).abs() < half / 2.0,
                        "{index}: {values:?}, {largest:?}"
                    );
                    assert!((right - left).max(bottom - top) <= 2.0 * half, "{index}: {values:?}, {largest:?}");
                }
            }
            assert!(values.len() == 3 && values.iter().all(|value| (0.0..1.0).contains(value)), "{values:?}");
            let known: Vec<bool> = dataset.object_pixels(index);
            assert!(known.iter().zip(&map.classes).all(|(inside, class)| *inside == (*class > 0)));
        }
    }
    assert!(counts[1..].iter().all(|count| *count > 10), "{counts:?}");
}

#[test]
fn a_scene_of_one_object_is_the_one_without_other_targets() {
    for spec in [shapes([1, 1], 32, 3), shapes([1, 1], 17, 1)] {
        let plain =
            SyntheticDataset::new(&SyntheticSpec { num_objects: [1, 3], ..spec.clone() }, Split::Train).unwrap();
        let dataset = scene(&spec, &[TargetKind::Boxes, TargetKind::Class]);
        for index in 0..20 {
            let (one, other) = (plain.sample(index).unwrap(), dataset.sample(index).unwrap());
            assert_eq!((&one.image, one.label), (&other.image, other.label));
            assert_eq!(one.targets, [Target::Class(one.label.unwrap())]);
            assert_eq!(other.targets[1], one.targets[0]);
            assert_eq!(plain.known_object(index), dataset.known_object(index));
        }
    }
    let voronoi = SyntheticSpec { scene: SyntheticScene::Voronoi, ..SyntheticSpec::default() };
    let plain = SyntheticDataset::new(&voronoi, Split::Train).unwrap();
    assert_eq!(plain.sample(3).unwrap().image, scene(&voronoi, &TargetKind::ALL).sample(3).unwrap().image);
}

#[test]
fn the_foremost_object_wins_and_each_is_seen_in_the_image() {
    let dataset = scene(&shapes([3, 3], 48, 3), &[TargetKind::Map]);
    let (mut num_told, mut num) = (0, 0);
    for index in 0..40 {
        let sample = dataset.sample(index).unwrap();
        let Target::Map(map) = &sample.targets[0] else { panic!("a map") };
        let mean = |class: u16| {
            let of_class = map.classes.iter().enumerate().filter(|(_, own)| **own == class);
            let pixels: Vec<f64> = of_class
                .map(|(at, _)| {
                    f64::from(sample.image.pixels[3 * at])
                        + f64::from(sample.image.pixels[3 * at + 1])
                        + f64::from(sample.image.pixels[3 * at + 2])
                })
                .collect();
            (pixels.len() > 30).then(|| pixels.iter().sum::<f64>() / pixels.len() as f64 / 3.0)
        };
        let Some(background) = mean(0) else { continue };
        for class in 1..=6 {
            if let Some(object) = mean(class) {
                num += 1;
                num_told += u32::from((object - background).abs() > 20.0);
            }
        }
    }
    assert!(num > 60 && num_told == num, "{num_told} of {num}");
}

#[test]
fn what_a_dataset_says_of_its_targets_fits_them() {
    let spec = DatasetSpec {
        format: Synthetic::NAME,
        targets: vec![TargetKind::Values, TargetKind::Map, TargetKind::Labels],
        synthetic: shapes([1, 3], 32, 3),
        ..DatasetSpec::default()
    };
    let dataset = open(&spec).unwrap();
    let infos = dataset.targets_info();
    let kinds: Vec<TargetKind> = infos.iter().map(|info| info.kind).collect();
    assert_eq!(kinds, spec.targets);
    assert_eq!(infos[0].names, ["center_x", "center_y", "diameter"]);
    assert_eq!(infos[1].names, ["background", "circle", "square", "triangle", "cross", "ring", "bar"]);
    assert_eq!(infos[2].names, dataset.info().class_names);
    assert_eq!(super::super::kinds(&spec).unwrap(), TargetKind::ALL);
    // Each is drawn again as it was, in any order.
    let samples: Vec<Sample> = (0..8).map(|index| dataset.sample(index).unwrap()).collect();
    let again = open(&spec).unwrap();
    (0..8).rev().for_each(|index| assert_eq!(again.sample(index).unwrap(), samples[index]));
}

#[test]
fn targets_that_the_data_lack_are_refused() {
    let refused = |targets: Vec<TargetKind>| {
        let spec = DatasetSpec { targets, ..DatasetSpec::default() };
        open(&spec).err().unwrap().to_string()
    };
    assert_eq!(
        refused(vec![TargetKind::Class, TargetKind::Class]),
        "targets must be different ones of class, labels, values, map, boxes, at least one, not class, class"
    );
    assert!(refused(Vec::new()).ends_with("not (none)"));
    let cifar =
        DatasetSpec { targets: vec![TargetKind::Map], ..spec(&fixture("cifar10-bin"), FormatName::AUTO, Split::Train) };
    let error = open(&cifar).err().unwrap();
    assert!(error.to_string().ends_with("cifar10-bin has no map of its images, it has: class"), "{error}");
    assert_eq!(error.exit_code(), 65);
    let only_class = SyntheticSpec { num_objects: [2, 2], ..SyntheticSpec::default() };
    let error = SyntheticDataset::new(&only_class, Split::Train).err().unwrap().to_string();
    assert!(
        error.starts_with("data.synthetic.num_objects must be [1, 3] where only the class is asked for"),
        "{error}"
    );
    for num_objects in [[0, 2], [3, 2], [1, 9]] {
        let error = shapes(num_objects, 32, 3).check().unwrap_err().to_string();
        assert!(error.contains("from 1 to 8"), "{error}");
    }
}
