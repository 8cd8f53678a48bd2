//! Commands that read a checkpoint: pictures, evaluations and listings.

use serde_json::Value;

use crate::place::{Place, read};

/// Pixels of a cell, of the gaps and of a line of text in a panel of 16 x 16 images.
const SIDE: u32 = 160;
const GAP: u32 = 10;
const LINE: u32 = 14;

#[test]
fn the_panel_is_a_png_that_shows_every_image_with_its_mask() {
    let place = Place::new();
    place.train("run", &[]);
    for num_images in [1, 5] {
        let count = num_images.to_string();
        place.succeed(&["visualize", "run", "-n", &count, "--out", "panel.png"]);
        let panel = image::load_from_memory(&read(&place.path("panel.png"))).expect("PNG").to_rgb8();
        let height = GAP + LINE + num_images * (LINE + SIDE + GAP) + 4 * LINE + GAP;
        assert_eq!(panel.height(), height, "a row for each image, a legend and three notes");
        assert!(panel.width() >= GAP + 4 * (SIDE + GAP), "four columns: {}", panel.width());
        for row in 0..num_images {
            let top = GAP + LINE + row * (LINE + SIDE + GAP) + LINE;
            let pixel = |column: u32, x: u32, y: u32| panel.get_pixel(GAP + column * (SIDE + GAP) + x, top + y);
            let (mut num_masked, mut num_changed) = (0, 0);
            for patch in 0..16 {
                let (x, y) = (patch % 4 * 40, patch / 4 * 40);
                let all = || (0..40 * 40).map(move |at| (x + at % 40, y + at / 40));
                // A masked patch is hidden in the third column and reconstructed in the fourth; a visible
                // one is the image itself in both.
                let is_masked = all().any(|(x, y)| pixel(0, x, y) != pixel(2, x, y));
                num_masked += u32::from(is_masked);
                let is_changed = all().any(|(x, y)| pixel(0, x, y) != pixel(3, x, y));
                num_changed += u32::from(is_changed);
                assert!(is_masked || !is_changed, "patch {patch} is visible and changed");
            }
            assert_eq!(num_masked, 12, "three quarters of 16 patches");
            assert!(num_changed >= 10, "{num_changed} reconstructed patches differ from the image");
        }
    }
    let again = read(&place.path("panel.png"));
    place.succeed(&["visualize", "run", "-n", "5"]);
    assert_eq!(again, read(&place.path("run/images/step-00000014.png")), "its own place, the same picture");
}

#[test]
fn the_panel_of_random_masks_has_no_scores() {
    let place = Place::new();
    place.train("run", &["--set", "method.baseline=true"]);
    place.succeed(&["visualize", "run", "-n", "2", "--out", "panel.png"]);
    let panel = image::load_from_memory(&read(&place.path("panel.png"))).expect("PNG").to_rgb8();
    assert_eq!(panel.height(), GAP + LINE + 2 * (LINE + SIDE + GAP) + 3 * LINE + GAP, "three notes and no legend");
    let is_changed = |column: u32| {
        (0..SIDE * SIDE).any(|at| {
            let (x, y) = (GAP + at % SIDE, GAP + 2 * LINE + at / SIDE);
            panel.get_pixel(x, y) != panel.get_pixel(x + column * (SIDE + GAP), y)
        })
    };
    assert!(is_changed(1) && is_changed(2), "visible patches and the reconstruction");
}

#[test]
fn evaluations_repeat_what_training_ended_with() {
    let place = Place::new();
    place.train("run", &[]);
    for task in ["knn", "linear"] {
        let out = place.succeed(&["eval", task, "run", "--json", "--untrained"]);
        assert_eq!(strip_seconds(&out), strip_seconds(&place.succeed(&["eval", task, "run", "--json", "--untrained"])));
        let report: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["num_test"], 16, "{out}");
        for key in ["accuracy", "untrained_accuracy"] {
            let accuracy = report[key].as_f64().expect("accuracy");
            assert!((0.0..=1.0).contains(&accuracy), "{task} {key}: {accuracy}");
            assert_eq!((accuracy * 16.0).fract(), 0.0, "a share of 16 images");
        }
    }
    let knn: Value = serde_json::from_str(&place.succeed(&["eval", "knn", "run", "--json"])).expect("JSON");
    place.succeed(&["logs", "export", "run", "--table", "evals", "--format", "csv", "--out", "evals.csv"]);
    let csv = String::from_utf8(read(&place.path("evals.csv"))).expect("UTF-8");
    let logged = csv.lines().find(|line| line.contains("knn,test,accuracy,")).expect("row");
    let accuracy = logged.split("knn,test,accuracy,").nth(1).and_then(|rest| rest.split(',').next());
    assert_eq!(accuracy.and_then(|text| text.parse::<f64>().ok()), knn["accuracy"].as_f64(), "{logged}");
}

fn strip_seconds(json: &str) -> String {
    json.lines().filter(|line| !line.contains("\"seconds\"")).collect()
}

#[test]
fn inspect_lists_every_tensor_under_its_usual_name() {
    let place = Place::new();
    place.train("run", &[]);
    let report: Value = serde_json::from_str(&place.succeed(&["inspect", "run", "--json"])).expect("JSON");
    assert_eq!((&report["step"], &report["state"]["outer_iteration"]), (&14.into(), &7.into()));
    let shape = |file: &str, name: &str| {
        let tensors = report["files"][file].as_array().expect("tensors");
        let tensor = tensors.iter().find(|tensor| tensor["name"] == name);
        tensor.unwrap_or_else(|| panic!("{file} lacks {name}"))["shape"].clone()
    };
    for (file, name, expected) in [
        ("model", "patch_embed.proj.weight", vec![16, 1, 4, 4]),
        ("model", "cls_token", vec![1, 1, 16]),
        ("model", "pos_embed", vec![1, 17, 16]),
        ("model", "blocks.0.attn.qkv.weight", vec![48, 16]),
        ("model", "decoder_pred.weight", vec![16, 8]),
        ("mask", "first_hidden_layer.fc.weight", vec![10, 256]),
        ("mask", "output_layer.weight", vec![16, 10]),
        ("head", "head.weight", vec![4, 16]),
    ] {
        assert_eq!(shape(file, name), serde_json::json!(expected), "{name}");
    }
    let text = place.succeed(&["inspect", "run", "--tensors"]);
    assert!(text.contains("decoder_blocks.0.mlp.fc1.weight"), "{text}");
}
