use super::*;

fn synthetic(spec: &SyntheticSpec, split: Split) -> SyntheticDataset {
    SyntheticDataset::new(spec, split).unwrap()
}

fn small(num_classes: usize, image: usize, channels: usize) -> SyntheticSpec {
    SyntheticSpec { num_train: 60, num_test: 20, image, num_classes, seed: 3, channels, ..SyntheticSpec::default() }
}

#[test]
fn images_depend_on_seed_split_and_index_alone() {
    let spec = small(10, 32, 3);
    let (first, again) =
        (synthetic(&spec, Split::Train), synthetic(&SyntheticSpec { num_train: 1000, ..spec.clone() }, Split::Train));
    let (test, other) = (synthetic(&spec, Split::Test), synthetic(&SyntheticSpec { seed: 4, ..spec }, Split::Train));
    for index in (0..20).rev() {
        let sample = first.sample(index).unwrap();
        assert_eq!(sample, again.sample(index).unwrap());
        assert_eq!(sample.label, first.label(index).unwrap());
        assert_ne!(sample.image, test.sample(index).unwrap().image);
        assert_ne!(sample.image, other.sample(index).unwrap().image);
    }
}

#[test]
fn every_class_is_as_frequent_as_the_others() {
    for num_classes in 2..=10 {
        let dataset = synthetic(&small(num_classes, 16, 1), Split::Train);
        assert_eq!(dataset.info().class_names.len(), num_classes);
        let mut counts = vec![0; num_classes];
        (0..60).for_each(|index| counts[dataset.label(index).unwrap().unwrap() as usize] += 1);
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    }
}

#[test]
fn object_patches_are_where_the_object_is() {
    for channels in [1, 3] {
        let dataset = synthetic(&small(10, 32, channels), Split::Train);
        for index in 0..60 {
            let pixels = dataset.object_pixels(index);
            let area = pixels.iter().filter(|&&inside| inside).count();
            assert!((25..500).contains(&area), "sample {index} has {area} object pixels");
            assert!(
                (0..32).all(|i| !pixels[i] && !pixels[31 * 32 + i] && !pixels[i * 32] && !pixels[i * 32 + 31]),
                "inside the image"
            );
            let alone = dataset.known_object(index).unwrap();
            assert_eq!((alone.width, alone.height, alone.channels), (32, 32, 1));
            assert!(alone.pixels.iter().zip(&pixels).all(|(byte, inside)| (*byte >= 128) == *inside));
            for patch in [4, 5, 8, 32] {
                let patches = dataset.object_patches(index, patch);
                let grid = 32_usize.div_ceil(patch);
                assert_eq!(patches.len(), grid * grid);
                for (at, &has) in patches.iter().enumerate() {
                    let inside = |i: usize| i / 32 / patch == at / grid && i % 32 / patch == at % grid;
                    assert_eq!(has, (0..1024).any(|i| inside(i) && pixels[i]));
                }
                assert_eq!(dataset.known_object_patches(index, patch), Some(patches));
            }
            // The object's brightness stands out from the background's.
            let image = decode::resize::to_channels(&dataset.sample(index).unwrap().image, 1);
            let mean = |object: bool| {
                let values: Vec<f64> = image
                    .pixels
                    .iter()
                    .zip(&pixels)
                    .filter(|(_, p)| **p == object)
                    .map(|(v, _)| f64::from(*v))
                    .collect();
                values.iter().sum::<f64>() / values.len() as f64
            };
            assert!((mean(true) - mean(false)).abs() > 20.0, "sample {index}: {} and {}", mean(true), mean(false));
        }
    }
    assert_eq!(synthetic(&small(2, 16, 1), Split::Train).object_patches(0, 0), Vec::<bool>::new());
    assert_eq!(open(&DatasetSpec::default()).unwrap().known_object_patches(0, 4), None);
    assert_eq!(open(&DatasetSpec::default()).unwrap().known_object(0), None);
}

#[test]
fn shapes_of_different_classes_differ() {
    // Mean silhouettes around the object's centre of mass must be distinguished by a nearest-mean rule far above
    // chance.
    let dataset = synthetic(&SyntheticSpec { num_train: 400, ..small(10, 48, 1) }, Split::Train);
    let silhouette = |index: usize| {
        let pixels = dataset.object_pixels(index);
        let inside: Vec<(usize, usize)> = (0..48 * 48).filter(|&i| pixels[i]).map(|i| (i % 48, i / 48)).collect();
        let (left, right) = (inside.iter().map(|p| p.0).min().unwrap(), inside.iter().map(|p| p.0).max().unwrap());
        let (top, bottom) = (inside.iter().map(|p| p.1).min().unwrap(), inside.iter().map(|p| p.1).max().unwrap());
        let (width, height) = (right - left + 1, bottom - top + 1);
        let crop = (top..=bottom)
            .flat_map(|y| (left..=right).map(move |x| (x, y)))
            .map(|(x, y)| u8::from(pixels[y * 48 + x]) * 255)
            .collect();
        decode::resize::resize(&Image { width, height, channels: 1, pixels: crop }, 12, 12).pixels
    };
    let mut means = vec![vec![0.0; 144]; 10];
    for index in 0..200 {
        let class = dataset.label(index).unwrap().unwrap() as usize;
        means[class].iter_mut().zip(silhouette(index)).for_each(|(mean, value)| *mean += f64::from(value) / 20.0);
    }
    let right = (200..400).filter(|&index| {
        let pixels = silhouette(index);
        let distance =
            |mean: &Vec<f64>| mean.iter().zip(&pixels).map(|(m, &v)| (m - f64::from(v)).powi(2)).sum::<f64>();
        let nearest = (0..10).min_by(|a, b| distance(&means[*a]).total_cmp(&distance(&means[*b]))).unwrap();
        Some(nearest as i32) == dataset.label(index).unwrap()
    });
    assert!(right.clone().count() > 160, "{} of 200", right.count());
}

/// The middle of the box around the object's pixels, x and y.
fn middle(dataset: &SyntheticDataset, index: usize) -> [f64; 2] {
    let side = dataset.info().image_size.unwrap().0;
    let pixels = dataset.object_pixels(index);
    let inside = |along: &dyn Fn(usize) -> usize| {
        let places = (0..side * side).filter(|at| pixels[*at]).map(along);
        let (low, high) = places.fold((side, 0), |(low, high), at| (low.min(at), high.max(at)));
        0.5 * (low + high + 1) as f64
    };
    [inside(&|at| at % side), inside(&|at| at / side)]
}

#[test]
fn labels_of_the_place_leave_the_images_as_they_are_and_name_the_objects_cell() {
    let voronoi = SyntheticSpec { scene: SyntheticScene::Voronoi, ..small(4, 32, 3) };
    for scene in [small(4, 32, 3), small(10, 32, 1), voronoi] {
        let scene = SyntheticSpec { num_train: 3000, ..scene };
        let of_object = synthetic(&scene, Split::Train);
        for grid in [2, 3] {
            let spec = SyntheticSpec { label: SyntheticLabel::Place, place_grid: grid, ..scene.clone() };
            let of_place = synthetic(&spec, Split::Train);
            assert_eq!(of_place.info().class_names.len(), grid * grid);
            assert_eq!(of_place.info().class_names[grid * grid - 1], "bottom-right");
            let mut counts = vec![0usize; grid * grid];
            let mut num_told = 0;
            for index in 0..3000 {
                let label = of_place.label(index).unwrap().unwrap() as usize;
                counts[label] += 1;
                if index >= 300 {
                    continue;
                }
                let (one, other) = (of_object.sample(index).unwrap(), of_place.sample(index).unwrap());
                assert_eq!(one.image, other.image, "sample {index}");
                assert_eq!((other.id, other.label), (one.id, Some(label as i32)));
                // Discs, rings and bars lie evenly around their centre, other shapes nearly so: far enough from the
                // borders of cells the middle of what is seen is in the cell that the label names.
                let cell = 32.0 / grid as f64;
                let middle = middle(&of_object, index);
                if middle.iter().all(|at| (1..grid).all(|border| (at - border as f64 * cell).abs() > 2.5)) {
                    assert_eq!(label, (middle[1] / cell) as usize * grid + (middle[0] / cell) as usize, "{middle:?}");
                    num_told += 1;
                }
            }
            assert!(num_told > 20, "{num_told} images lie well within a cell");
            if grid == 2 {
                // Four equally likely cells: within four standard deviations.
                assert!(counts.iter().all(|&num| (num as f64 - 750.0).abs() < 4.0 * 23.8), "{counts:?}");
            } else {
                assert!(counts.iter().all(|num| *num > 0) && counts[4] > counts[0], "{counts:?}");
            }
        }
    }
}

#[test]
fn senseless_settings_are_refused() {
    let base = SyntheticSpec::default();
    let wrong = [
        (SyntheticSpec { num_classes: 11, ..base.clone() }, "synthetic.num_classes must be 2 to 10, not 11"),
        (SyntheticSpec { channels: 4, ..base.clone() }, "synthetic.channels must be 1 or 3, not 4"),
        (SyntheticSpec { image: 7, ..base.clone() }, "synthetic.image must be 8 to 1024, not 7"),
        (
            SyntheticSpec { place_grid: 4, label: SyntheticLabel::Place, ..base.clone() },
            "synthetic.place_grid must be 2 to 3, not 4",
        ),
        (
            SyntheticSpec { place_grid: 3, ..base.clone() },
            "synthetic.place_grid must be 2, or data.synthetic.label = \"place\", not 3",
        ),
        (SyntheticSpec { num_test: 0, ..base }, "synthetic.num_test must be 1 to 2147483648, not 0"),
    ];
    for (spec, message) in wrong {
        let spec = DatasetSpec { format: Synthetic::NAME, synthetic: spec, ..DatasetSpec::default() };
        assert_eq!(open(&spec).err().unwrap().to_string(), message);
    }
}
