//! The scene `voronoi`: its distribution against closed forms, and against figures of a simulation written apart from it
//! (numpy, 20,000 to 30,000 images).

use super::*;

const SIDE: usize = 24;
/// E\[r²] of a radius between 4.0 and 5.2.
const MEAN_SQUARED_RADIUS: f64 = (4.0 * 4.0 + 4.0 * 5.2 + 5.2 * 5.2) / 3.0;
/// The value of a byte of 127.5 more than the middle: the object's peak and three deviations of the noise.
const PEAK: f64 = 1.15 + 3.0 * 0.05;

fn testbed() -> SyntheticSpec {
    SyntheticSpec { scene: SyntheticScene::Voronoi, image: SIDE, num_train: 8000, seed: 5, ..SyntheticSpec::default() }
}

fn equal_areas() -> SyntheticSpec {
    SyntheticSpec { areas: ObjectAreas::Equal, ..testbed() }
}

fn generated(spec: &SyntheticSpec) -> SyntheticDataset {
    SyntheticDataset::new(spec, Split::Train).unwrap()
}

fn class(dataset: &SyntheticDataset, index: usize) -> usize {
    dataset.label(index).unwrap().unwrap() as usize
}

fn area(dataset: &SyntheticDataset, index: usize) -> f64 {
    dataset.object_pixels(index).iter().filter(|inside| **inside).count() as f64
}

/// Values of a sample, [side * side] of 3.
fn values(dataset: &SyntheticDataset, index: usize, peak: f64) -> Vec<[f64; 3]> {
    let pixels = dataset.sample(index).unwrap().image.pixels;
    pixels.chunks_exact(3).map(|rgb| [0, 1, 2].map(|c| (f64::from(rgb[c]) - 127.5) / 127.5 * peak)).collect()
}

/// Mean area of each class over `range`.
fn mean_areas(dataset: &SyntheticDataset, range: std::ops::Range<usize>) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); dataset.info().class_names.len()];
    for index in range {
        let sum = &mut sums[class(dataset, index)];
        *sum = (sum.0 + area(dataset, index), sum.1 + 1.0);
    }
    sums.into_iter().map(|(sum, num)| sum / num).collect()
}

#[track_caller]
fn assert_near(got: f64, wanted: f64, tolerance: f64) {
    assert!((got - wanted).abs() <= tolerance, "{got} instead of {wanted}, by more than {tolerance}");
}

#[test]
fn areas_are_those_of_the_shapes_or_equal() {
    let plus = 4.0 * 0.66 - 0.66 * 0.66;
    let diagonal = 4.0 - 1.5 * 1.5;
    let pi = std::f64::consts::PI;
    let shapes = [pi, plus, 1.44, 1.44, diagonal, diagonal, 0.7 * pi, 0.6 * 1.75 * 1.75];
    let all_kinds = generated(&SyntheticSpec { num_classes: 8, ..testbed() });
    for (mean, shape) in mean_areas(&all_kinds, 0..8000).into_iter().zip(shapes) {
        assert_near(mean, shape * MEAN_SQUARED_RADIUS, 0.025 * mean);
    }
    let equal = generated(&SyntheticSpec { num_classes: 8, ..equal_areas() });
    for mean in mean_areas(&equal, 0..8000) {
        assert_near(mean, 1.76 * MEAN_SQUARED_RADIUS, 0.04 * mean);
    }
}

#[test]
fn objects_lie_on_a_sixth_of_the_patches() {
    for (spec, wanted) in [(testbed(), 6.11), (equal_areas(), 5.51)] {
        let dataset = generated(&spec);
        let num = |index| dataset.object_patches(index, 4).into_iter().filter(|has| *has).count();
        let mean = (0..4000).map(num).sum::<usize>() as f64 / 4000.0;
        // Four standard errors of either mean.
        assert_near(mean, wanted, 0.15);
    }
}

#[test]
fn area_alone_tells_the_class_only_where_areas_differ() {
    for (spec, wanted) in [(testbed(), 0.563), (equal_areas(), 0.24)] {
        let dataset = generated(&spec);
        let means = mean_areas(&dataset, 0..4000);
        let is_right = |index: &usize| {
            let distance = |class: &usize| (means[*class] - area(&dataset, *index)).abs();
            (0..4).min_by(|a, b| distance(a).total_cmp(&distance(b))) == Some(class(&dataset, *index))
        };
        let accuracy = (4000..8000).filter(is_right).count() as f64 / 4000.0;
        assert_near(accuracy, wanted, 0.04);
    }
}

#[test]
fn objects_are_red_and_the_background_is_no_cue() {
    let dataset = generated(&testbed());
    let (mut object, mut squared_tint, mut background) = ([0.0; 3], 0.0, [[0.0; 3]; 4]);
    let mut num_background = 0.0;
    for index in 0..1000 {
        let (values, inside) = (values(&dataset, index, PEAK), dataset.object_pixels(index));
        let area = area(&dataset, index);
        let of_object = values.iter().zip(&inside).filter(|(_, inside)| **inside);
        let colour = of_object.fold([0.0; 3], |sum, (value, _)| [0, 1, 2].map(|c| sum[c] + value[c] / area));
        object = [0, 1, 2].map(|c| object[c] + colour[c] / 1000.0);
        squared_tint += (colour[0] - 1.0).powi(2) / 1000.0;
        for (value, _) in values.iter().zip(&inside).filter(|(_, inside)| !**inside) {
            let sum = &mut background[class(&dataset, index)];
            *sum = [0, 1, 2].map(|c| sum[c] + value[c]);
            num_background += 0.25;
        }
    }
    for (mean, wanted) in object.into_iter().zip([1.0, -0.6, -0.6]) {
        assert_near(mean, wanted, 0.01);
    }
    // A uniform tint of up to 0.15 either way.
    assert_near(squared_tint.sqrt(), 0.15 / 3.0_f64.sqrt(), 0.006);
    for mean in background.into_iter().flatten() {
        assert_near(mean / num_background, 0.0, 0.04);
    }
}

#[test]
fn the_background_varies_as_cells_with_gratings() {
    let dataset = generated(&testbed());
    let (mut square, mut num) = (0.0, 0.0);
    // Products of values 1, 2, 4 and 8 pixels apart along an axis.
    let mut products = [1, 2, 4, 8].map(|lag| (lag, 0.0, 0.0));
    for index in 0..1500 {
        let (values, inside) = (values(&dataset, index, PEAK), dataset.object_pixels(index));
        for at in (0..SIDE * SIDE).filter(|at| !inside[*at]) {
            square += values[at].iter().map(|value| value * value).sum::<f64>();
            num += 3.0;
            for (lag, sum, num) in &mut products {
                for other in [at + *lag, at + *lag * SIDE] {
                    let in_line = other - at >= SIDE || at % SIDE + *lag < SIDE;
                    if in_line && other < SIDE * SIDE && !inside[other] {
                        *sum += (0..3).map(|c| values[at][c] * values[other][c]).sum::<f64>();
                        *num += 3.0;
                    }
                }
            }
        }
    }
    // Variances of a cell's colour, 1/12, and of a grating, 0.6²/3 of its amplitude times half; and the noise.
    let background = 1.0 / 12.0 + 0.12 / 2.0;
    assert_near(square / num, background + 0.05_f64.powi(2), 0.003);
    for ((_, sum, num), wanted) in products.into_iter().zip([0.773, 0.492, 0.317, 0.142]) {
        assert_near(sum / num / background, wanted, 0.025);
    }
}

#[test]
fn bytes_are_seldom_cut_off() {
    let loud = SyntheticSpec { background_amplitude: 3.0, pixel_noise: 0.2, ..testbed() };
    let strong = SyntheticSpec { object_contrast: 2.0, num_distractors: 4, ..testbed() };
    for spec in [testbed(), loud, strong] {
        let dataset = generated(&spec);
        let bytes: Vec<u8> = (0..300).flat_map(|index| dataset.sample(index).unwrap().image.pixels).collect();
        let num_cut = bytes.iter().filter(|byte| matches!(byte, 0 | 255)).count();
        assert!(num_cut * 10_000 < bytes.len(), "{num_cut} of {}", bytes.len());
        let (low, high) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
        assert!(high - low > 180, "the range is used: {low} to {high}");
    }
}

#[test]
fn settings_change_what_they_name() {
    let noise_of = |spec: SyntheticSpec, peak: f64| {
        let dataset = generated(&spec);
        let outside = (0..50).flat_map(|index| {
            let inside = dataset.object_pixels(index);
            values(&dataset, index, peak).into_iter().zip(inside).filter(|(_, inside)| !inside)
        });
        let squares: Vec<f64> = outside.flat_map(|(value, _)| value.map(|value| value * value)).collect();
        (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
    };
    // A flat background leaves the noise.
    let flat = SyntheticSpec { background_amplitude: 0.0, pixel_noise: 0.1, ..testbed() };
    assert_near(noise_of(flat, 1.15 + 0.3), 0.1, 0.002);
    let double = SyntheticSpec { background_amplitude: 2.0, pixel_noise: 0.0, ..testbed() };
    assert_near(noise_of(double, 2.2), 2.0 * (1.0_f64 / 12.0 + 0.06).sqrt(), 0.08);
    // A contrast of a half, and a tint with it.
    let pale = generated(&SyntheticSpec { object_contrast: 0.5, pixel_noise: 0.0, ..testbed() });
    for index in 0..50 {
        let (values, inside) = (values(&pale, index, 1.1), pale.object_pixels(index));
        for (value, _) in values.iter().zip(inside).filter(|(_, inside)| *inside) {
            for (value, wanted) in value.iter().zip([0.5, -0.3, -0.3]) {
                assert_near(*value, wanted, 0.075 + 0.01);
            }
        }
    }
    // Radii: a disc is as wide as twice its radius, to a pixel.
    for (radius, areas, scale) in [([2.0, 2.5], ObjectAreas::ByShape, 1.0), ([8.0, 10.0], ObjectAreas::Equal, 0.75)] {
        let dataset = generated(&SyntheticSpec { object_radius: radius, areas, ..testbed() });
        for index in (0..200).filter(|index| class(&dataset, *index) == 0) {
            let pixels = dataset.object_pixels(index);
            let columns: Vec<usize> = (0..SIDE).filter(|x| (0..SIDE).any(|y| pixels[y * SIDE + x])).collect();
            let width = (columns[columns.len() - 1] - columns[0] + 1) as f64;
            let [low, high] = radius.map(|radius| 2.0 * scale * radius);
            assert!((low - 1.5..=high + 1.0).contains(&width), "{width} pixels, radii {radius:?}");
        }
    }
}

#[test]
fn distractors_lie_behind_the_object_and_are_blue_and_green() {
    let spec = SyntheticSpec { num_distractors: 3, background_amplitude: 0.0, pixel_noise: 0.0, ..testbed() };
    let dataset = generated(&spec);
    let (mut num_blue, mut num_green) = (0, 0);
    for index in 0..400 {
        let inside = dataset.object_pixels(index);
        for (value, inside) in values(&dataset, index, 1.15).iter().zip(inside) {
            let near = |colour: [f64; 3]| (0..3).all(|c| (value[c] - colour[c]).abs() < 0.16);
            let (blue, green) = (near([-0.6, -0.6, 1.0]), near([-0.6, 0.8, -0.6]));
            let flat = value.iter().all(|value| value.abs() < 0.01);
            assert!(if inside { near([1.0, -0.6, -0.6]) } else { blue || green || flat }, "{index}: {value:?}");
            num_blue += u32::from(blue);
            num_green += u32::from(green);
        }
    }
    // 1,200 of about 44 pixels each, of which the object and each other hide a quarter.
    assert_near(f64::from(num_blue + num_green), 40_000.0, 4000.0);
    // Three standard deviations of which colour each has.
    assert_near(f64::from(num_blue) / f64::from(num_green), 1.0, 0.2);
    // They change neither the object nor its label.
    let without = generated(&SyntheticSpec { num_distractors: 0, ..spec });
    for index in 0..50 {
        assert_eq!(dataset.object_pixels(index), without.object_pixels(index));
        assert_eq!(class(&dataset, index), class(&without, index));
    }
}

#[test]
fn images_depend_on_seed_split_and_index_alone() {
    let spec = SyntheticSpec { num_distractors: 2, num_classes: 8, ..testbed() };
    let dataset = generated(&spec);
    let shorter = generated(&SyntheticSpec { num_train: 40, ..spec.clone() });
    let test = SyntheticDataset::new(&spec, Split::Test).unwrap();
    let other = generated(&SyntheticSpec { seed: 6, ..spec });
    assert_eq!(dataset.info().class_names[..3], ["disc", "plus", "horizontal-bar"]);
    let images: Vec<Image> = (0..40).map(|index| dataset.sample(index).unwrap().image).collect();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (images, shorter) = (&images, &shorter);
            scope.spawn(move || {
                for index in (0..40).rev().filter(|index| index % 3 == thread) {
                    assert_eq!(shorter.sample(index).unwrap().image, images[index]);
                }
            });
        }
    });
    for (index, image) in images.iter().enumerate() {
        assert_ne!(test.sample(index).unwrap().image, *image);
        assert_ne!(other.sample(index).unwrap().image, *image);
        assert!(images[..index].iter().all(|earlier| earlier != image));
        let alone = dataset.known_object(index).unwrap();
        let bytes = dataset.object_pixels(index).into_iter().map(|inside| if inside { 255 } else { 0 });
        assert_eq!(alone, Image { width: SIDE, height: SIDE, channels: 1, pixels: bytes.collect() });
    }
    assert_eq!(dataset.known_object(8000), None);
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let voronoi = "with data.synthetic.scene = \"voronoi\"";
    let shapes = "with data.synthetic.scene = \"shapes\"";
    let of_shapes = SyntheticSpec::default();
    let wrong = [
        (SyntheticSpec { num_classes: 9, ..testbed() }, format!("num_classes must be 2 to 8 {voronoi}, not 9")),
        (
            SyntheticSpec { channels: 1, ..testbed() },
            format!("channels must be 3 {voronoi}, whose object is told by its colour, not 1"),
        ),
        (SyntheticSpec { num_distractors: 17, ..testbed() }, "num_distractors must be 0 to 16, not 17".to_owned()),
        (
            SyntheticSpec { object_radius: [5.0, 12.5], ..testbed() },
            "object_radius must be the lower and the upper of two radii from 1 to 12 (image = 24), not [5.0, 12.5]"
                .to_owned(),
        ),
        (
            SyntheticSpec { object_radius: [5.0, 11.0], ..equal_areas() },
            "object_radius must be the lower and the upper of two radii from 1 to 10.9 (image = 24), not [5.0, 11.0]"
                .to_owned(),
        ),
        (
            SyntheticSpec { object_contrast: f64::NAN, ..testbed() },
            "object_contrast must be 0.1 to 10, not NaN".to_owned(),
        ),
        (
            SyntheticSpec { areas: ObjectAreas::Equal, ..of_shapes.clone() },
            format!("areas must be \"by-shape\" {shapes}, not \"equal\""),
        ),
        (
            SyntheticSpec { object_radius: [2.0, 3.0], ..of_shapes.clone() },
            format!("object_radius must be [4.0, 5.2] {shapes}, not [2.0, 3.0]"),
        ),
        (SyntheticSpec { pixel_noise: 0.0, ..of_shapes }, format!("pixel_noise must be 0.05 {shapes}, not 0.0")),
    ];
    for (spec, message) in wrong {
        assert_eq!(spec.check().unwrap_err().to_string(), format!("synthetic.{message}"));
        assert!(SyntheticDataset::new(&spec, Split::Test).is_err());
    }
    // The named bounds are allowed.
    for spec in [
        SyntheticSpec { object_radius: [1.0, 12.0], num_distractors: 16, num_classes: 8, ..testbed() },
        SyntheticSpec { object_radius: [10.9, 10.9], num_classes: 8, ..equal_areas() },
    ] {
        generated(&spec).sample(0).unwrap();
    }
}
